"""Metrics: (sum, count) pairs to means, a terminal line and metrics.jsonl."""

import json
import pathlib

import jax
import numpy as np

from dpo_jax import types


def add(total: types.Metrics | None, new: types.Metrics) -> types.Metrics:
  """Host sums of (sum, count) pairs in float64."""
  new = {
    k: (np.float64(s), np.float64(c))
    for k, (s, c) in jax.device_get(new).items()
  }
  if total is None:
    return new
  return {k: (s + total[k][0], c + total[k][1]) for k, (s, c) in new.items()}


def means(metrics: types.Metrics, prefix: str = '') -> dict[str, float]:
  """name -> sum / count; NaN where nothing was counted."""
  return {
    prefix + k: float(s / c) if c else float('nan')
    for k, (s, c) in metrics.items()
  }


def append_jsonl(path: pathlib.Path, row: dict) -> None:
  """Appends one object as one line; NaN and infinities become strings."""
  clean = {
    k: str(v) if isinstance(v, float) and not np.isfinite(v) else v
    for k, v in row.items()
  }
  with open(path, 'a', encoding='utf-8') as f:
    f.write(json.dumps(clean) + '\n')


def line(row: dict) -> str:
  """One terminal line."""

  def show(v):
    return f'{v:.4g}' if isinstance(v, float) else str(v)

  return '  '.join(f'{k} {show(v)}' for k, v in row.items())
