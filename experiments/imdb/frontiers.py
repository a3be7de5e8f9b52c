"""Reward at the same KL, of methods with several settings and blocks.

A run's points are its evaluations; between neighbours r is linear in the root
of the KL, and beyond them nothing is assumed (`dpo_jax.evals.frontier`). A
method's reward at a KL is that of its best setting there: the one with the
largest mean over blocks, among those of which every block's run encloses the
KL.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dpo_jax.evals import frontier

KLS = (0.5, 1.0, 2.0, 4.0)
# Points below this KL are starts, which nothing dominates.
LEAST_KL = 0.3
# setting -> block -> the run's points.
Settings = Mapping[str, Mapping[int, Sequence[frontier.Point]]]


class AtKl(NamedTuple):
  """A method at a KL: its setting there, and each block's rewards, f64[U]."""

  setting: str
  rewards: dict[int, np.ndarray]

  @property
  def rewards_SxU(self) -> np.ndarray:
    """Those of all blocks."""
    return np.stack(list(self.rewards.values()))

  def minus(self, other: 'AtKl') -> np.ndarray | None:
    """Differences in the blocks that both have, f64[S, U]; None without any."""
    both = [block for block in self.rewards if block in other.rewards]
    if not both:
      return None
    return np.stack([self.rewards[b] - other.rewards[b] for b in both])


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


def reward_at_kl(result: Mapping[str, Any], kl: float) -> float | None:
  """The mean r of a run at a KL; None for a run that does not enclose it."""
  rewards_U = frontier.at_kl(points_of(result), kl)
  return None if rewards_U is None else float(rewards_U.mean())


def at_kl(settings: Settings, kl: float) -> AtKl | None:
  """A method at a KL; None where no setting's runs all enclose it.

  A setting that lacks a block which another has does not count.
  """
  blocks = set().union(*settings.values())
  found = []
  for name, runs in settings.items():
    rewards = {b: frontier.at_kl(points, kl) for b, points in runs.items()}
    if set(runs) == blocks and all(x is not None for x in rewards.values()):
      found.append(AtKl(name, dict(sorted(rewards.items()))))
  return max(found, key=lambda x: x.rewards_SxU.mean(), default=None)


def bootstrap(
  x_SxU: np.ndarray, *, seed: int = 0, draws: int = 10_000
) -> tuple[float, float, float]:
  """(mean, low, high) at 95 %: blocks are drawn, and prompts, which they share.

  x: of each block and prompt, such as differences of two methods. Few blocks
  make the interval too narrow.
  """
  rng = np.random.default_rng(seed)
  blocks, prompts = x_SxU.shape
  block_DxS = rng.multinomial(blocks, np.full(blocks, 1 / blocks), draws)
  prompt_DxU = rng.multinomial(prompts, np.full(prompts, 1 / prompts), draws)
  means_D = np.einsum('ds,su,du->d', block_DxS, x_SxU, prompt_DxU)
  low, high = np.percentile(means_D / x_SxU.size, (2.5, 97.5))
  return float(x_SxU.mean()), float(low), float(high)


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
