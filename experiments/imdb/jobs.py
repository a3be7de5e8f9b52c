"""The commands of the sentiment study, and what each needs.

A block of a scale has its stages (reference, reward, pairs, learned reward)
and the runs of the methods, whose numbers are results. Runs of one block are
compared with each other, so they share its stages to the bit.
"""

import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from experiments.imdb import pages, results, tuning

PAGE = 'experiments/imdb/pages.py'
# method -> (what is varied, its values), as in the paper.
GRID = {
  'dpo': ('method.beta', (0.05, 0.1, 1.0, 5.0)),
  'ppo': ('method.target_kl', (3.0, 6.0, 9.0, 12.0)),
  'ppo_rm': ('method.target_kl', (3.0, 6.0, 9.0, 12.0)),
  'unlikelihood': ('method.alpha', (0.05, 0.1, 0.5, 1.0)),
  'preferred_ft': (None, (None,)),
  'rloo': ('method.target_kl', (6.0,)),
  'online_dpo': ('method.beta', (0.1,)),
  'dpo_sure': ('method.beta', (0.1,)),
}


class Job(NamedTuple):
  """A command, and the path that it leaves when it has ended.

  needs: names of jobs that come first. place: the block that its numbers are
  kept for. result: the file of a method's numbers; None for a stage.
  """

  name: str
  command: list[str]
  leaves: pathlib.Path
  needs: tuple[str, ...] = ()
  place: pages.Place | None = None
  result: pathlib.Path | None = None

  @property
  def missing(self) -> bool:
    """Whether it is to be run, if something asks for it."""
    return not (self.result or self.leaves).exists()


def of_scale(
  scale: str, blocks: Iterable[int], reviews: str | None
) -> dict[str, Job]:
  """name -> job: tuning, and where tuning chose for a method, its runs."""
  found = list(_shared(reviews))
  tuned = pages.Place(scale, pages.TUNING)
  for block in {pages.TUNING, *blocks}:
    found += _reward_stages(pages.Place('tiny', block))
    found += _stages(pages.Place(scale, block))
  for method in tuning.METHODS:
    for peak in tuning.PEAKS:
      found.append(_tuning(tuned, method, peak))
  for block in blocks:
    place = pages.Place(scale, block)
    found.append(_ceiling(place))
    found += _finals(place)
  return {job.name: job for job in found}


def _module(name: str, **flags) -> list[str]:
  command = ['-m', f'experiments.imdb.{name}']
  return command + [f'--{k}={v}' for k, v in flags.items() if v is not None]


def _shared(reviews: str | None) -> Iterator[Job]:
  data = pathlib.Path(pages.RUNS, 'data')
  made = _module('splits', reviews=reviews, out=data)
  yield Job('data', made, data / 'evaluate')
  start = pathlib.Path(pages.SCALES['tiny'].start)
  yield Job('start', _module('start', data=data, out=start), start, ('data',))


def _name(place: pages.Place, run: str) -> str:
  return f'{place.scale}/{place.block}/{run}'


def _trained(
  place: pages.Place,
  stage: str,
  needs: Iterable[str],
  run: str | None = None,
  changes: Mapping[str, Any] | None = None,
  result: pathlib.Path | None = None,
) -> Job:
  folder = place.folder(run or stage)
  variant = _name(place, stage)
  command = ['-m', 'dpo_jax.train', f'--config={PAGE}:{variant}']
  command.append(f'--workdir={folder}')
  command += [f'--config.{k}={v}' for k, v in (changes or {}).items()]
  return Job(
    _name(place, run or stage),
    command,
    pathlib.Path(folder, 'params'),
    tuple(needs),
    place,
    result,
  )


def _completed(place: pages.Place, stage: str, needs: Iterable[str]) -> Job:
  folder = place.folder(stage)
  command = ['-m', 'dpo_jax.pairs', f'--config={PAGE}:{_name(place, stage)}']
  command.append(f'--workdir={folder}')
  leaves = pathlib.Path(folder, 'pairs.jsonl')
  return Job(_name(place, stage), command, leaves, tuple(needs), place)


def _reward_stages(place: pages.Place) -> Iterator[Job]:
  """What r is made of, in a block of the scale 'tiny'."""
  sft = _name(place, 'sft')
  yield _trained(place, 'sft', ['start'])
  yield _trained(place, 'labels_1', [sft])
  yield _trained(place, 'labels_2', [sft])
  yield _completed(place, 'pairs', [_name(place, 'labels_1')])
  yield Job(
    _name(place, 'reward'),
    _module('reward', block=place.block),
    pathlib.Path(place.folder('reward/params')),
    (_name(place, 'pairs'),),
  )


def _stages(place: pages.Place) -> Iterator[Job]:
  """What the methods read; those of the reward have come before."""
  of_reward = _name(pages.Place('tiny', place.block), 'reward')
  if place.scale != 'tiny':
    yield _trained(place, 'sft', ['data'])
    yield _completed(place, 'pairs', [_name(place, 'sft'), of_reward])
  drawn = _name(place, 'labels')
  yield Job(
    drawn,
    _module('labels', scale=place.scale, block=place.block),
    pathlib.Path(place.folder('pairs/drawn.jsonl')),
    (of_reward, _name(place, 'pairs')),
  )
  yield _completed(place, 'evaluate', [_name(place, 'sft'), of_reward])
  evaluated = _name(place, 'evaluate')
  yield _trained(place, 'reward_model', [drawn, evaluated])


def _needs(place: pages.Place, method: str) -> list[str]:
  stages = ['labels', 'evaluate']
  stages += ['reward_model'] if method == 'ppo_rm' else []
  # The second classifier judges results.
  judge = _name(pages.Place('tiny', place.block), 'labels_2')
  return [*(_name(place, stage) for stage in stages), judge]


def _tuning(place: pages.Place, method: str, peak: float) -> Job:
  """Half as long as a final run."""
  page = pages.get_config(_name(place, method))
  changes = {'schedule.peak': peak}
  if page.epochs is not None:
    changes['epochs'] = page.epochs / 2
  else:
    changes['steps'] = page.steps // 2
  run = f'{method}_{peak:g}'
  result = tuning.path_of_run(place.scale, method, peak)
  return _trained(place, method, _needs(place, method), run, changes, result)


def _ceiling(place: pages.Place) -> Job:
  """Its command writes its result."""
  return Job(
    _name(place, 'ceiling'),
    _module('ceiling', scale=place.scale, block=place.block),
    results.path_of(place, 'ceiling'),
    (_name(place, 'evaluate'),),
    None,
    results.path_of(place, 'ceiling'),
  )


def _finals(place: pages.Place) -> Iterator[Job]:
  """With the values that tuning chose; a method that has none yet has none."""
  for method, (option, values) in GRID.items():
    chosen = tuning.chosen(place.scale, method)
    for value in values if chosen else ():
      run, changes = method, dict(chosen)
      if option:
        run, changes[option] = f'{method}_{value:g}', value
      result = results.path_of(place, run)
      needs = _needs(place, method)
      yield _trained(place, method, needs, run, changes, result)


def to_run(jobs: Mapping[str, Job], names: Iterable[str]) -> dict[str, Job]:
  """Those of these jobs that are missing, and what they need that is."""
  found = {}

  def add(name):
    job = jobs[name]
    if name not in found and job.missing:
      found[name] = job
      for needed in job.needs:
        # A stage is needed where its output is not there, even if a result is.
        add(needed)

  for name in names:
    add(name)
  return found
