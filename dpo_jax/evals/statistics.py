"""Statistics of the scores of several samples per prompt."""

import math

import numpy as np

from dpo_jax import registry


def best_of_n(scores_BxM: np.ndarray, n: int) -> np.ndarray:
  """The expected maximum of n of each prompt's M scores, f32[B].

  The n are drawn without replacement, so this is the mean of the maximum over
  all C(M, n) subsets: unbiased for the expected maximum of n new samples. The
  i-th smallest score is the maximum of C(i - 1, n - 1) subsets. Computed in
  float64. ValueError for an n outside of [1, M].
  """
  sorted_BxM = np.sort(np.asarray(scores_BxM, np.float64), axis=1)
  m = sorted_BxM.shape[1]
  registry.check_integer('n', n, 1)
  if n > m:
    raise ValueError(f'n is {n}, but there are {m} scores per prompt.')
  # From the largest score downwards, the weight C(i - 1, n - 1) / C(m, n) is
  # n / m times the product of ratios that are at most 1.
  i = np.arange(m, 1, -1)
  ratios = np.maximum(i - n, 0) / (i - 1)
  weights_M = n / m * np.cumprod(np.append(1.0, ratios))[::-1]
  return (sorted_BxM @ weights_M).astype(np.float32)


def best_of_n_kl_bound(n: int) -> float:
  """log n - (n - 1) / n: nats that the best of n may be from its policy.

  KL(best-of-n || policy) is at most this (Beirami et al., arXiv:2401.01879, who
  show that it is not the KL itself, as was often said); in the limit of many
  completions, each with a small probability and a score of its own, it is equal
  to it. ValueError for an n below 1.
  """
  registry.check_integer('n', n, 1)
  return math.log(n) - (n - 1) / n
