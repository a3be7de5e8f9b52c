"""Equal tuning: four configurations of each method, half as long, one seed.

  python -m experiments.imdb.run --reviews FOLDER --scale tiny

tries them before the final runs, with the stages of block 0, and with prompts
and a seed that no final run has. The criterion, fixed before: the reward r at a
KL of 1 nat, by a straight line between the evaluations around it; a run that
does not get there has none, and where none of a method's runs does, the reward
at the end decides. results/SCALE/tuning has every run, tuning_SCALE.json what
was chosen.
"""

import json
import pathlib
from typing import Any

import numpy as np

from experiments.imdb import frontiers, results

KL = 1.0
# Learning rates, for every method.
PEAKS = (3e-5, 1e-4, 3e-4, 1e-3)
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
    results.write_json(path_of(scale), out, indent=1)


def _choice(scale: str, method: str) -> dict[str, Any] | None:
  tried = []
  for peak in PEAKS:
    path = path_of_run(scale, method, peak)
    if not path.exists():
      return None
    found = json.loads(path.read_text())
    tried.append(
      {
        'schedule.peak': peak,
        'reward_at_kl': frontiers.reward_at_kl(found, KL),
        'reward_at_end': float(np.mean(found['points'][-1]['reward'])),
        'kl_at_end': float(np.mean(found['points'][-1]['kl'])),
        'cpu_seconds': found['cpu_seconds'],
      }
    )
  reached = [x for x in tried if x['reward_at_kl'] is not None]
  by = 'reward_at_kl' if reached else 'reward_at_end'
  best = max(reached or tried, key=lambda x: x[by])
  chosen = {'schedule.peak': best['schedule.peak']}
  return {'chosen': chosen, 'by': by, 'tried': tried}


def chosen(scale: str, method: str) -> dict[str, Any] | None:
  """The options that tuning chose for a method; None where it has not yet."""
  path = path_of(scale)
  known = json.loads(path.read_text()) if path.exists() else {}
  choice = known.get(LIKE.get(method, method))
  return choice and choice['chosen']
