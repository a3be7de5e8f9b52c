"""Statistics of per-example values: means, shares, perplexity, by length.

All functions take NumPy arrays with one value per example, compute in float64
and return values for JSON. Intervals are 95 % and treat examples as
independent.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from dpo_jax.training import metrics

# The number of length bins, which have about equally many examples.
NUM_BINS = 4
Stats = dict[str, Any]


def mean(values_P: np.ndarray) -> Stats:
  """Mean with its normal interval, which is NaN for one example."""
  x = np.asarray(values_P, np.float64)
  low, high = metrics.normal_interval(x.sum(), len(x), (x * x).sum())
  return {'mean': float(x.mean()), 'low': low, 'high': high}


def share(values_P: np.ndarray) -> Stats:
  """Mean of values in [0, 1] with Wilson's interval."""
  x = np.asarray(values_P, np.float64)
  low, high = metrics.wilson_interval(x.sum(), len(x))
  return {'mean': float(x.mean()), 'low': low, 'high': high}


def metrics_of(name: str, stats: Stats) -> dict[str, float]:
  """Metrics `name`, `name`_low and `name`_high of a mean or share."""
  return {
    name: stats['mean'],
    f'{name}_low': stats['low'],
    f'{name}_high': stats['high'],
  }


def perplexity(logps_P: np.ndarray, tokens_P: np.ndarray) -> Stats:
  """exp of the mean negative log-probability of a token.

  logps_P: sums over each completion, in nats. The interval is that of a ratio
  of two sums (delta method); completions are treated as independent, the tokens
  of one completion are not. It is NaN for one completion.
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
  """The quantile bin of each example, i64[P], from 0.

  Equal lengths share a bin, so bins may be fewer, or uneven.
  """
  shares = np.arange(1, num_bins + 1) / num_bins
  ends = np.quantile(lengths_P, shares, method='inverted_cdf')
  return np.searchsorted(np.unique(ends), lengths_P)


def by_length(
  values: Mapping[str, np.ndarray],
  lengths_P: np.ndarray,
  num_bins: int = NUM_BINS,
) -> list[Stats]:
  """For each length bin its range, number of examples and statistics.

  values: name -> one value per example; 'accuracy' is treated by `share`, the
  others by `mean`.
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
