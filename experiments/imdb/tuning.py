"""Equal tuning: four learning rates for each method, half as long, one seed.

  python -m experiments.imdb.run --reviews FOLDER --scale tiny

tries them before the final runs, with the stages of block 0, and with prompts
and a seed that no final run has. The criterion, fixed before: the reward r at a
KL of 1 nat, interpolated between the evaluations around it; a run that
does not get there has none, and where none of a method's runs does, the reward
at the end decides. A method whose best is the smallest or the largest tries one
more beyond it. What is best at 4 nats has final runs of its own, METHOD_far,
which show the frontier where small learning rates do not get. results/SCALE/
tuning has every run, tuning_SCALE.json what was chosen.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments import files
from experiments.imdb import frontiers, results

KL, FAR_KL = 1.0, 4.0
FAR = '_far'
# Learning rates, for every method; the first and the last are tried only if
# the one beside them is the best of the others.
_OF_PRETRAINED = (3e-7, 1e-6, 3e-6, 1e-5, 3e-5, 1e-4)
PEAKS = {
  'tiny': (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3),
  'small': _OF_PRETRAINED,
  'paper': _OF_PRETRAINED,
}
METHODS = (
  'dpo',
  'ppo',
  'ppo_rm',
  'unlikelihood',
  'preferred_ft',
  'rloo',
  'online_dpo',
)
# Methods that have the values of another.
LIKE = {'dpo_sure': 'dpo'}


def path_of(scale: str) -> pathlib.Path:
  """What was chosen, and why."""
  return results.RESULTS / f'tuning_{scale}.json'


def path_of_run(scale: str, method: str, peak: float) -> pathlib.Path:
  """The result of a configuration; those of a method are compared."""
  return results.RESULTS / scale / 'tuning' / method / f'{peak:g}.json'


def choose(scale: str) -> None:
  """Writes, for each method whose runs have ended, what is best."""
  out = {m: _choice(scale, m) for m in METHODS}
  out = {method: choice for method, choice in out.items() if choice}
  if out:
    files.write_json(path_of(scale), out, indent=1)


def peaks(scale: str, method: str) -> tuple[float, ...]:
  """The learning rates to try, as far as they are known."""
  least, *inner, most = PEAKS[scale]
  found = _best(scale, method, inner)
  beyond = {inner[0]: least, inner[-1]: most}
  best = found and found['chosen']['schedule.peak']
  return (*inner, beyond[best]) if best in beyond else tuple(inner)


def _choice(scale: str, method: str) -> dict[str, Any] | None:
  return _best(scale, method, peaks(scale, method))


def _best(
  scale: str, method: str, peaks: Sequence[float]
) -> dict[str, Any] | None:
  """What is best of these; None where one has no result yet."""
  paths = [path_of_run(scale, method, peak) for peak in peaks]
  if not all(path.exists() for path in paths):
    return None
  tried = [_outcome(*x) for x in zip(peaks, paths)]
  reached = [x for x in tried if x['reward_at_kl'] is not None]
  by = 'reward_at_kl' if reached else 'reward_at_end'
  far = [x for x in tried if x['reward_far'] is not None]
  return {
    'chosen': _options(reached or tried, by),
    'by': by,
    'far': _options(far, 'reward_far') if far else None,
    'tried': tried,
  }


def _options(tried: Sequence[dict[str, Any]], by: str) -> dict[str, float]:
  best = max(tried, key=lambda x: x[by])
  return {'schedule.peak': best['schedule.peak']}


def _outcome(peak: float, path: pathlib.Path) -> dict[str, float | None]:
  found = json.loads(path.read_text())
  last = found['points'][-1]
  return {
    'schedule.peak': peak,
    'reward_at_kl': frontiers.reward_at_kl(found, KL),
    'reward_far': frontiers.reward_at_kl(found, FAR_KL),
    'reward_at_end': float(np.mean(last['reward'])),
    'kl_at_end': float(np.mean(last['kl'])),
    'cpu_seconds': found['cpu_seconds'],
  }


def read_choices(scale: str) -> dict[str, dict[str, Any]]:
  """What was chosen for each method, and what was tried; {} before that."""
  path = path_of(scale)
  return json.loads(path.read_text()) if path.exists() else {}


def chosen(scale: str, method: str) -> dict[str, Any] | None:
  """The options that tuning chose for a method; None where it has not yet."""
  name = LIKE.get(method, method)
  choice = read_choices(scale).get(name.removesuffix(FAR))
  return choice and choice['far' if name.endswith(FAR) else 'chosen']


def read(scale: str) -> dict[str, dict[str, dict[int, dict[str, Any]]]]:
  """method -> learning rate -> block 0 -> result, of all that were tried."""
  found = {}
  for method in METHODS:
    for peak in PEAKS[scale]:
      path = path_of_run(scale, method, peak)
      if path.exists():
        result = json.loads(path.read_text())
        found.setdefault(method, {})[f'{peak:g}'] = {0: result}
  return found
