"""All commands of the sentiment study.

A block of a scale has its stages (reference, reward, pairs, learned reward)
and the runs of the methods, whose numbers are results. Runs of one block are
compared with each other, so they share its stages to the bit.
"""

import pathlib
from collections.abc import Iterable, Iterator

from experiments.imdb import (
  ablations,
  job,
  pages,
  places,
  probe,
  results,
  tuning,
)
from experiments.imdb.job import Job

# method -> (what is varied, its values), as in the paper.
_TARGETS = (3.0, 6.0, 9.0, 12.0)
_PAPER = {
  'dpo': ('method.beta', (0.05, 0.1, 1.0, 5.0)),
  'ppo': ('method.target_kl', _TARGETS),
  'ppo_rm': ('method.target_kl', _TARGETS),
  'unlikelihood': ('method.alpha', (0.05, 0.1, 0.5, 1.0)),
  'preferred_ft': (None, (None,)),
  'rloo': ('method.target_kl', (6.0,)),
  'online_dpo': ('method.beta', (0.1,)),
  'dpo_sure': ('method.beta', (0.1,)),
  'dpo_far': ('method.beta', (0.1,)),
  'ppo_far': ('method.target_kl', (12.0,)),
  'ppo_rm_far': ('method.target_kl', (12.0,)),
}
# Of 'small' the points that say whether it is as in 'tiny'.
GRIDS = {
  'tiny': _PAPER,
  'small': {
    'dpo': ('method.beta', (0.05, 0.1, 1.0)),
    'ppo': ('method.target_kl', (3.0, 6.0, 12.0)),
    'ppo_rm': ('method.target_kl', (3.0, 6.0, 12.0)),
  },
  'paper': _PAPER,
}
# Whose samples are looked at further, and the reference's.
PROBED = ('sft', 'dpo_0.1', 'ppo_6', 'ppo_rm_6')


def of_scale(
  scale: str,
  blocks: Iterable[int],
  reviews: str | None = None,
  ablated: bool = False,
) -> dict[str, Job]:
  """name -> job: tuning, and where tuning chose for a method, its runs.

  ablated: the blocks have ablations in place of the grid.
  """
  found = list(_shared(reviews))
  # Tuning has the stages of block 0.
  for block in sorted({0, *blocks}):
    found += _reward_stages(places.Place('tiny', block))
    found += _stages(places.Place(scale, block))
  found += _tuning(places.Place(scale, 0))
  for block in blocks:
    place = places.Place(scale, block)
    found += ablations.of_block(place) if ablated else _grid(place)
  return {x.name: x for x in found}


def _shared(reviews: str | None) -> Iterator[Job]:
  data = pathlib.Path(places.RUNS, 'data')
  made = job.module('splits', reviews=reviews, out=data)
  yield Job('data', made, data / places.NEWS)
  start = pathlib.Path(places.SCALES['tiny'].start)
  made = job.module('start', data=data, out=start)
  yield Job('start', made, start, ('data',))


def _reward_stages(place: places.Place) -> Iterator[Job]:
  """What r is made of, in a block of the scale 'tiny'."""
  sft = job.name_of(place, 'sft')
  yield job.trained(place, 'sft', ['start', 'data'])
  yield job.trained(place, 'labels_1', [sft, 'data'])
  yield job.trained(place, 'labels_2', [sft, 'data'])
  yield _completed(place, 'pairs')
  yield Job(
    job.name_of(place, 'reward'),
    job.module('reward', block=place.block),
    pathlib.Path(place.folder('reward/params')),
    (job.name_of(place, 'pairs'),),
  )


def _completed(place: places.Place, stage: str) -> Job:
  needs = [job.name_of(place, 'sft'), job.of_reward(place, 'labels_1')]
  return job.completed(place, stage, [*needs, 'data'])


def _stages(place: places.Place) -> Iterator[Job]:
  """What the methods read; those of the reward have come before."""
  if place.scale != 'tiny':
    yield job.trained(place, 'sft', ['data'])
    yield _completed(place, 'pairs')
  yield job.labelled(place, 'labels', 'drawn')
  yield _completed(place, 'evaluate')
  needs = [job.name_of(place, stage) for stage in ('labels', 'evaluate')]
  yield job.trained(place, 'reward_model', needs)


def _needs(place: places.Place, method: str, prompts: str) -> list[str]:
  learned = ['reward_model'] if method == 'ppo_rm' else []
  return job.judged(place, ['labels', *learned], prompts)


def _tuning(place: places.Place) -> Iterator[Job]:
  """Each half as long as a final run, with prompts and a seed of its own."""
  yield _completed(place, 'tune')
  own = {'seed': 0, 'eval_data.path': place.folder('tune/pairs.jsonl')}
  for method in tuning.METHODS:
    if method not in GRIDS[place.scale]:
      continue
    page = pages.get_config(job.name_of(place, method))
    if page.epochs is not None:
      half = {'epochs': page.epochs / 2}
    else:
      half = {'steps': page.steps // 2}
    for peak in tuning.peaks(place.scale, method):
      yield job.trained(
        place,
        method,
        _needs(place, method, 'tune'),
        run=f'tuning/{method}_{peak:g}',
        changes={'schedule.peak': peak, **half, **own},
        result=tuning.path_of_run(place.scale, method, peak),
        prompts='tune',
      )


def _grid(place: places.Place) -> Iterator[Job]:
  """With the values that tuning chose; a method that has none yet has none.

  The commands of ceiling and probes write their results themselves.
  """
  path = results.path_of(place, 'ceiling')
  command = job.module('ceiling', scale=place.scale, block=place.block)
  name = job.name_of(place, 'ceiling')
  yield Job(name, command, path, tuple(job.judged(place)), path)
  for method, (option, values) in GRIDS[place.scale].items():
    chosen = tuning.chosen(place.scale, method)
    stage = method.removesuffix(tuning.FAR)
    for value in values if chosen else ():
      run, changes = method, dict(chosen)
      if option:
        run, changes[option] = f'{method}_{value:g}', value
      yield job.trained(
        place,
        stage,
        _needs(place, stage, 'evaluate'),
        run=run,
        changes=changes,
        result=results.path_of(place, run),
      )
      if run in PROBED:
        yield _probe(place, run)
  yield _probe(place, 'sft')


def _probe(place: places.Place, run: str) -> Job:
  path = probe.path_of(place, run)
  command = job.module('probe', scale=place.scale, block=place.block, run=run)
  needs = (*job.judged(place, ['reward_model']), job.name_of(place, run))
  name = job.name_of(place, f'probes/{run}')
  return Job(name, command, path, needs, path)
