"""One thing changed at a time: the runs of each ablation, of a block.

  python -m experiments.imdb.run --scale tiny --blocks 200 --ablations

Each is compared within its block with `plain`, DPO as in the grid: with the
values that tuning chose, at beta 0.1 (PPO: a target KL of 6 nats). Results are
in results/SCALE/BLOCK/NAME:

  plain       what the others change
  noise       labels of which a share is wrong: DPO, conservative and robust DPO
              that know the share, IPO, and PPO with a reward model of them
  references  DPO of references that learned less, or went on with news
  prompts     fewer prompts, more often, the same number of steps
  anchors     terms that keep the likelihood of the preferred completions up
  seeds       DPO with other training seeds
  off_policy  DPO on pairs that another model completed
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from experiments.imdb import job, places, results, tuning
from experiments.imdb.job import Job

NOISE = (0.0, 0.2, 0.4)
SHARES = (0.125, 0.25, 0.5)
SEEDS = (1_000, 1_001, 1_002)
SHORT = 0.125  # Of the reference's epochs.


def of_block(place: places.Place) -> Iterator[Job]:
  """The jobs of all ablations, and the stages that they alone need."""
  yield from _run(place, 'plain/dpo', 'dpo', {}, ['labels'])
  for ablation in (
    _noise,
    _references,
    _prompts,
    _anchors,
    _seeds,
    _off_policy,
  ):
    yield from ablation(place)


def _run(
  place: places.Place,
  name: str,
  stage: str,
  changes: Mapping[str, Any],
  needs: Iterable[str],
) -> Iterator[Job]:
  """A run with the values of a tuned method; none before it is tuned."""
  chosen = tuning.chosen(place.scale, 'ppo_rm' if stage == 'ppo_rm' else 'dpo')
  if chosen:
    yield job.trained(
      place,
      stage,
      job.judged(place, needs),
      run=name,
      changes=chosen | changes,
      result=results.path_of(place, name),
    )


def _noise(place: places.Place) -> Iterator[Job]:
  for rate in NOISE:
    flips = f'flipped_{rate:g}'
    yield job.labelled(place, flips, flips, flipped=rate)
    learned = f'reward_model_{flips}'
    read = {'train_data.path': place.folder(f'pairs/{flips}.jsonl')}
    needs = [job.name_of(place, x) for x in (flips, 'evaluate')]
    yield job.trained(place, 'reward_model', needs, run=learned, changes=read)
    losses = {'dpo': {}, 'ipo': {}}
    if rate:  # With no flips, these are DPO.
      known = {'method.label_smoothing': rate}
      losses |= {'cdpo': known, 'robust': known}
    for stage, more in losses.items():
      name = f'noise/{stage}_{rate:g}'
      yield from _run(place, name, stage, read | more, [flips])
    changes = {'reward.model': place.folder(f'{learned}/params')}
    changes['method.target_kl'] = 6.0
    name = f'noise/ppo_rm_{rate:g}'
    yield from _run(place, name, 'ppo_rm', changes, [learned, 'labels'])


def _short(place: places.Place) -> Job:
  needs = ['start', 'data'] if place.scale == 'tiny' else ['data']
  changes = {'epochs': SHORT * place.sizes.sft_epochs}
  return job.trained(place, 'sft', needs, run='sft_short', changes=changes)


def _references(place: places.Place) -> Iterator[Job]:
  yield _short(place)
  yield job.trained(place, 'sft_news', [job.name_of(place, 'sft'), 'data'])
  for reference in ('sft_short', 'sft_news'):
    changes = {'model.uri': place.folder(f'{reference}/params')}
    name = f'references/{reference}'
    yield from _run(place, name, 'dpo', changes, ['labels', reference])


def _prompts(place: places.Place) -> Iterator[Job]:
  for share in SHARES:
    prompts = int(share * place.sizes.pairs)
    file = f'drawn_{prompts}'
    yield job.labelled(place, file, file, prompts=prompts)
    changes = {'train_data.path': place.folder(f'pairs/{file}.jsonl')}
    changes['epochs'] = 1 / share
    yield from _run(place, f'prompts/{share:g}', 'dpo', changes, [file])


def _anchors(place: places.Place) -> Iterator[Job]:
  for stage in ('dpop', 'dpo_likelihood'):
    yield from _run(place, f'anchors/{stage}', stage, {}, ['labels'])


def _seeds(place: places.Place) -> Iterator[Job]:
  for seed in SEEDS:
    changes = {'seed': seed}
    yield from _run(place, f'seeds/{seed}', 'dpo', changes, ['labels'])


def _off_policy(place: places.Place) -> Iterator[Job]:
  """Pairs that the reference which learned less completed."""
  judge = job.of_reward(place, 'labels_1')
  needs = [job.name_of(place, 'sft_short'), judge, 'data']
  yield job.completed(place, 'pairs_off', needs)
  yield job.labelled(place, 'labels_off', 'drawn', of='pairs_off')
  changes = {'train_data.path': place.folder('pairs_off/drawn.jsonl')}
  yield from _run(place, 'off_policy/dpo', 'dpo', changes, ['labels_off'])
