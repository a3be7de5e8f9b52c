"""Equal tuning: four configurations of each method, half as long, one seed.

  python -m experiments.imdb.run --reviews FOLDER --scale tiny

tries them before the final runs, on prompts that nothing else samples. The
criterion, fixed before: the reward r at a KL of 1 nat, by a straight line
between the evaluations around it; a run that does not get there has none, and
where none of a method's runs does, the reward at the end decides.
results/SCALE/tuning has every run, tuning_SCALE.json what was chosen.
"""

import json
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from dpo_jax import assets
from dpo_jax.evals import frontier
from experiments.imdb import frontiers, results

KL, SEED = 1.0, 100
# Learning rates, for every method.
PEAKS = (3e-5, 1e-4, 3e-4, 1e-3)
METHODS = (
  'dpo',
  'preferred_ft',
  'unlikelihood',
  'ppo',
  'ppo_rm',
  'rloo',
  'online_dpo',
)


def configurations(method: str) -> Iterator[tuple[str, dict[str, Any]]]:
  """(name of the run, option -> value) of each configuration."""
  for peak in PEAKS:
    yield f'{method}_{peak:g}', {'schedule.peak': peak}


def path_of(scale: str) -> pathlib.Path:
  return results.RESULTS / f'tuning_{scale}.json'


def reward_at_kl(result: dict[str, Any]) -> float | None:
  """The mean r at a KL of 1 nat; None for a run that does not enclose it."""
  rewards_U = frontier.at_kl(frontiers.points_of(result), KL)
  return None if rewards_U is None else float(rewards_U.mean())


def choose(scale: str) -> None:
  """Writes, for each method, what was tried and what is best."""
  out = {}
  for method in METHODS:
    tried = []
    for name, options in configurations(method):
      path = results.path_of(scale, f'tuning/{name}')
      found = json.loads(path.read_text())
      tried.append(
        options
        | {
          'reward_at_kl': reward_at_kl(found),
          'reward_at_end': float(np.mean(found['points'][-1]['reward'])),
          'cpu_seconds': found['cpu_seconds'],
        }
      )
    reached = [x for x in tried if x['reward_at_kl'] is not None]
    by = 'reward_at_kl' if reached else 'reward_at_end'
    best = max(reached or tried, key=lambda x: x[by])
    peak = {'schedule.peak': best['schedule.peak']}
    out[method] = {'chosen': peak, 'by': by, 'tried': tried}
  with assets.atomic_path(path_of(scale)) as temp:
    temp.write_text(json.dumps(out, indent=1) + '\n')


def chosen(scale: str, method: str) -> dict[str, Any]:
  """The options that tuning chose for a method."""
  return json.loads(path_of(scale).read_text())[method]['chosen']
