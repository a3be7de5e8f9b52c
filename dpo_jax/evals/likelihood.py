"""What per-example numbers say: perplexity, accuracy, margins, by length.

All take NumPy arrays with one value an example, count in float64, and return
what JSON holds. Intervals are 95 %, examples taken as independent.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from dpo_jax.training import metrics

# Bins of about equally many examples.
NUM_BINS = 4
Stats = dict[str, Any]


def mean(values_P: np.ndarray) -> Stats:
  """Mean with the normal interval; NaN for that of one example."""
  x = np.asarray(values_P, np.float64)
  low, high = metrics.normal_interval(x.sum(), len(x), (x * x).sum())
  return {'mean': float(x.mean()), 'low': low, 'high': high}


def share(values_P: np.ndarray) -> Stats:
  """Mean of zeros and ones, or of shares, with Wilson's interval."""
  x = np.asarray(values_P, np.float64)
  low, high = metrics.wilson_interval(x.sum(), len(x))
  return {'mean': float(x.mean()), 'low': low, 'high': high}


def perplexity(logps_P: np.ndarray, tokens_P: np.ndarray) -> Stats:
  """exp of the mean negative log-probability of a token.

  logps_P: sums over each completion, in nats. The interval is that of the ratio
  of two sums (the delta method), completions taken as independent and the
  tokens of one not; NaN for one completion.
  """
  logps, tokens = (np.asarray(x, np.float64) for x in (logps_P, tokens_P))
  n, total = len(logps), tokens.sum()
  nats = -logps.sum() / total
  half = math.nan
  if n > 1:
    residual = -logps - nats * tokens
    variance = n / (n - 1) * (residual * residual).sum() / total**2
    half = metrics.Z * math.sqrt(variance)
  return {
    'mean': float(np.exp(nats)),
    'low': float(np.exp(nats - half)),
    'high': float(np.exp(nats + half)),
    'nats_per_token': float(nats),
    'tokens': int(total),
  }


def bins(lengths_P: np.ndarray, num_bins: int = NUM_BINS) -> np.ndarray:
  """i64[P]: quantile bin of each example, from 0.

  Equal lengths share a bin, so there may be fewer bins, and uneven ones.
  """
  shares = np.arange(1, num_bins + 1) / num_bins
  ends = np.quantile(lengths_P, shares, method='inverted_cdf')
  return np.searchsorted(np.unique(ends), lengths_P)


def by_length(
  values: Mapping[str, np.ndarray],
  lengths_P: np.ndarray,
  num_bins: int = NUM_BINS,
) -> list[Stats]:
  """Of each bin the lengths it spans, its examples, and their `values`.

  values: name -> one value an example; those named 'accuracy' are shares.
  """
  index = bins(lengths_P, num_bins)
  out = []
  for k in range(index.max() + 1):
    inside = index == k
    row = {
      'from': int(lengths_P[inside].min()),
      'to': int(lengths_P[inside].max()),
      'examples': int(inside.sum()),
    }
    for name, x in values.items():
      row[name] = (share if name == 'accuracy' else mean)(x[inside])
    out.append(row)
  return out
