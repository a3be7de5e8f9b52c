"""Rewards of mean 0 and standard deviation 1 over all samples so far."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from dpo_jax import types


class Seen(NamedTuple):
  """f32 scalars: how many scores there were, their mean, and the sum of their
  squared differences from it."""

  count: types.Array
  mean: types.Array
  squares: types.Array


def nothing_seen() -> Seen:
  """Before the first score."""
  return Seen(*[jnp.float32(0)] * 3)


def scale(scores_N: np.ndarray, seen: Seen) -> tuple[np.ndarray, Seen]:
  """(scores less the mean, over the deviation of all with these; all seen).

  T. Chan, G. Golub and R. LeVeque's update, The American Statistician 37(3),
  1983. The variance is over n - 1; equal scores give zeros.
  """
  n, m = float(seen.count), len(scores_N)
  mean = np.mean(scores_N, dtype=np.float64)
  change = mean - float(seen.mean)
  squares = float(seen.squares) + np.var(scores_N, dtype=np.float64) * m
  squares += change**2 * n * m / (n + m)
  mean = float(seen.mean) + change * m / (n + m)
  deviation = np.sqrt(squares / max(n + m - 1, 1))
  scaled_N = (scores_N - mean) / max(deviation, 1e-8)
  return np.float32(scaled_N), Seen(*map(np.float32, (n + m, mean, squares)))
