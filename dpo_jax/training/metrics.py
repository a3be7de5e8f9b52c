"""Metrics: sums and counts to means and intervals, and metrics.jsonl."""

import json
import math
import pathlib

import jax
import numpy as np

from dpo_jax import types

# Two-sided 95 % of the standard normal distribution.
Z = 1.959963984540054


def add(total: types.Metrics | None, new: types.Metrics) -> types.Metrics:
  """Host sums of each metric's parts, in float64.

  A metric is (sum, count), or (sum, count, sum of squares).
  """
  new = {
    k: tuple(map(np.float64, parts)) for k, parts in jax.device_get(new).items()
  }
  if total is None:
    return new
  return {
    k: tuple(a + b for a, b in zip(parts, total[k], strict=True))
    for k, parts in new.items()
  }


def means(metrics: types.Metrics, prefix: str = '') -> dict[str, float]:
  """name -> sum / count; NaN where nothing was counted."""
  return {
    prefix + k: float(s / c) if c else math.nan
    for k, (s, c, *_) in metrics.items()
  }


def intervals(metrics: types.Metrics, prefix: str = '') -> dict[str, float]:
  """95 % intervals of the means, as name + '_low' and name + '_high'.

  Of the metrics that carry a sum of squares; what was counted is taken as
  independent. Shares of 0 and 1, whose names end in 'accuracies', get Wilson's
  score interval, the others the normal one.
  """
  out = {}
  for name, (total, count, *squares) in metrics.items():
    if not squares:
      continue
    if name.endswith('accuracies'):
      low, high = wilson_interval(total, count)
    else:
      low, high = normal_interval(total, count, squares[0])
    out[f'{prefix}{name}_low'], out[f'{prefix}{name}_high'] = low, high
  return out


def wilson_interval(successes: float, count: float) -> tuple[float, float]:
  """Wilson's 95 % score interval (J. Am. Stat. Assoc. 22, 1927) of a share.

  Unlike the normal interval it has a width where all or none succeeded, and
  stays in [0, 1]. NaN for a count of 0.
  """
  if not count:
    return math.nan, math.nan
  share, shrink = successes / count, 1 + Z**2 / count
  centre = (share + Z**2 / (2 * count)) / shrink
  variance = max(share * (1 - share), 0.0) / count + Z**2 / (4 * count**2)
  half = Z * math.sqrt(variance) / shrink
  return max(float(centre - half), 0.0), min(float(centre + half), 1.0)


def normal_interval(
  total: float, count: float, squares: float
) -> tuple[float, float]:
  """mean -+ Z s / sqrt(count), s the sample deviation; NaN for one sample."""
  if count < 2:
    return math.nan, math.nan
  mean = total / count
  # Rounding can take the difference of equal values below 0.
  variance = max((squares - total * mean) / (count - 1), 0.0)
  half = Z * math.sqrt(variance / count)
  return float(mean - half), float(mean + half)


def append_jsonl(path: pathlib.Path, row: dict) -> None:
  """Appends one object as one line; NaN and infinities become strings."""
  clean = {
    k: str(v) if isinstance(v, float) and not math.isfinite(v) else v
    for k, v in row.items()
  }
  with open(path, 'a', encoding='utf-8') as f:
    f.write(json.dumps(clean) + '\n')


def read_jsonl(path: pathlib.Path) -> list[dict]:
  """The rows of a metrics.jsonl; 'nan', 'inf' and '-inf' become floats.

  A last line without its newline is one that a killed run was writing: it is
  left out.
  """
  *lines, _ = pathlib.Path(path).read_text('utf-8').split('\n')
  return [
    {
      k: float(v) if v in ('nan', 'inf', '-inf') else v
      for k, v in json.loads(line).items()
    }
    for line in lines
  ]
