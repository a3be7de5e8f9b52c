"""Reward against KL of several runs, and their reward at the same KL.

A run's points are its evaluations: samples of the same held-out prompts, with
their scores and their KL to the reference.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from dpo_jax.evals import likelihood, statistics

# Where runs are compared: these shares of the KLs that two of them cover.
SHARES = (0.25, 0.5, 0.75, 1.0)


class Point(NamedTuple):
  """An evaluation: the mean KL and reward of each unit's samples, f64[U].

  A unit is a prompt; where there is only one prompt, a sample, by its number.
  """

  step: int
  units: tuple[Any, ...]
  kl_U: np.ndarray
  reward_U: np.ndarray


class Matched(NamedTuple):
  """Mean rewards at one KL, each (mean, low, high), None where it is not met.

  differences: of each run to the first, paired by units; None where one of the
  two is missing. from_start: whether a run's reward is interpolated from its
  first evaluation, which runs of the same start share.
  """

  kl: float
  rewards: list[tuple[float, float, float] | None]
  differences: list[tuple[float, float, float] | None]
  from_start: list[bool]


def point(step: int, rows: Sequence[dict[str, Any]], reward: str) -> Point:
  """The point of a step's samples; ValueError where they lack KL or reward."""
  for name in ('kl', reward):
    if name not in rows[0]:
      raise ValueError(
        f'The samples of step {step} have no {name!r}; they have '
        f'{", ".join(rows[0])}.'
      )
  prompts = [row['prompt'] for row in rows]
  units = prompts if len(set(prompts)) > 1 else list(range(len(rows)))
  found: dict[Any, list[tuple[float, float]]] = {}
  for unit, row in zip(units, rows):
    found.setdefault(unit, []).append((row['kl'], row[reward]))
  means = np.array([np.mean(x, axis=0) for x in found.values()])
  return Point(step, tuple(found), *means.T)


def intervals(p: Point) -> dict[str, float]:
  """Means with 95 % intervals over the units: kl, kl_low, ... reward_high."""
  return likelihood.metrics_of('kl', likelihood.mean(p.kl_U)) | (
    likelihood.metrics_of('reward', likelihood.mean(p.reward_U))
  )


def at_kl(points: Sequence[Point], kl: float) -> np.ndarray | None:
  """Each unit's reward where the mean KL is `kl`, f64[U].

  Linear in the root of the KL, between the first two neighbouring evaluations
  whose mean KLs enclose it; None where none do: nothing is extrapolated. Close
  to the reference the KL grows with the square of a step, the reward with the
  step: a chord in the KL itself would be too low, and the lower the fewer
  evaluations a run has.
  """
  i = _segment(points, kl)
  if i is None:
    return None
  before, after = points[i : i + 2]
  at, a, b = (_root(x) for x in (kl, before.kl_U.mean(), after.kl_U.mean()))
  share = (at - a) / (b - a)
  return (1 - share) * before.reward_U + share * after.reward_U


def _root(kl: float) -> float:
  # An estimate of a KL may be below 0.
  return math.sqrt(max(kl, 0.0))


def _segment(points: Sequence[Point], kl: float) -> int | None:
  """The first of the two evaluations between which `at_kl` interpolates."""
  means = [float(p.kl_U.mean()) for p in points]
  for i, (a, b) in enumerate(itertools.pairwise(means)):
    if min(a, b) <= kl <= max(a, b) and _root(a) != _root(b):
      return i
  return None


def common_range(runs: Sequence[Sequence[Point]]) -> tuple[float, float] | None:
  """The KLs that all runs cover; None if there are none."""
  means = [[float(p.kl_U.mean()) for p in points] for points in runs]
  low, high = max(map(min, means)), min(map(max, means))
  return (low, high) if low < high else None


def match(
  runs: Sequence[Sequence[Point]], *, seed: int = 0, draws: int = 10_000
) -> list[Matched]:
  """Rewards at some KLs that the first run and another cover; [] without such.

  Intervals are bootstrapped over the units, which runs share; the mean KLs
  count as known. ValueError where runs have other units.
  """
  for points in runs[1:]:
    if points[0].units != runs[0][0].units:
      raise ValueError('The runs have samples of different prompts.')
  covered = [common_range([runs[0], other]) for other in runs[1:]]
  kls = {
    min(high, low + share * (high - low))
    for low, high in filter(None, covered)
    for share in SHARES
  }
  out = []
  for kl in sorted(kls):
    rewards = [at_kl(points, kl) for points in runs]
    options = dict(seed=seed, draws=draws)
    out.append(
      Matched(
        kl,
        [
          None if x is None else statistics.bootstrap(x, **options)
          for x in rewards
        ],
        [
          None
          if x is None or rewards[0] is None
          else statistics.paired_bootstrap(x, rewards[0], **options)
          for x in rewards
        ],
        [_segment(points, kl) == 0 for points in runs],
      )
    )
  return out
