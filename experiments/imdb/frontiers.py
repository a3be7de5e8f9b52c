"""Reward at the same KL, of methods with several settings and seeds.

A run's points are its evaluations; between neighbours r is a straight line, and
beyond them nothing is assumed (`dpo_jax.evals.frontier`). A method's reward at
a KL is that of its best setting there: the one with the largest mean over
seeds, among those of which every seed encloses the KL.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dpo_jax.evals import frontier

KLS = (0.5, 1.0, 2.0, 4.0)
# Points below this KL are starts, which nothing dominates.
LEAST_KL = 0.3


class AtKl(NamedTuple):
  """A method at a KL: its setting there, and each seed's rewards, f64[S, U]."""

  setting: str
  rewards_SxU: np.ndarray

  @property
  def of_seeds(self) -> list[float]:
    """The mean of each seed."""
    return self.rewards_SxU.mean(axis=1).tolist()


def points_of(result: Mapping[str, Any]) -> list[frontier.Point]:
  """The points of a result's file; units are prompts by their number."""
  return [
    frontier.Point(
      p['step'],
      tuple(range(len(p['kl']))),
      np.array(p['kl'], float),
      np.array(p['reward'], float),
    )
    for p in result['points']
  ]


def at_kl(
  settings: Mapping[str, Sequence[Sequence[frontier.Point]]], kl: float
) -> AtKl | None:
  """A method at a KL; None where no setting's runs all enclose it.

  settings: name -> the points of each seed's run.
  """
  found = []
  for name, runs in settings.items():
    rewards = [frontier.at_kl(points, kl) for points in runs]
    if all(x is not None for x in rewards):
      found.append(AtKl(name, np.stack(rewards)))
  return max(found, key=lambda x: x.rewards_SxU.mean(), default=None)


def bootstrap(
  first_SxU: np.ndarray,
  second_SxU: np.ndarray | None = None,
  *,
  seed: int = 0,
  draws: int = 10_000,
) -> tuple[float, float, float]:
  """(mean, low, high) of a mean, or of the difference of two, at 95 %.

  Seeds are drawn first, of each method by itself, then prompts, which are the
  same for all runs.
  """
  rng = np.random.default_rng(seed)
  prompts = first_SxU.shape[1]
  arrays = [first_SxU] if second_SxU is None else [first_SxU, second_SxU]
  means = np.zeros(draws)
  for d in range(draws):
    chosen = rng.integers(prompts, size=prompts)
    weight_U = np.bincount(chosen, minlength=prompts) / prompts
    for sign, x_SxU in zip((1, -1), arrays):
      seeds = rng.integers(len(x_SxU), size=len(x_SxU))
      means[d] += sign * (x_SxU[seeds].mean(axis=0) @ weight_U)
  mean = sum(s * x.mean() for s, x in zip((1, -1), arrays))
  low, high = np.percentile(means, (2.5, 97.5))
  return float(mean), float(low), float(high)


def dominated(
  points: Sequence[frontier.Point], others: Sequence[frontier.Point]
) -> tuple[int, int]:
  """(how many, of how many) points another has less KL and more reward than.

  Points below LEAST_KL do not count.
  """
  far = [p for p in points if p.kl_U.mean() > LEAST_KL]
  count = sum(
    any(
      o.kl_U.mean() < p.kl_U.mean() and o.reward_U.mean() > p.reward_U.mean()
      for o in others
    )
    for p in far
  )
  return count, len(far)
