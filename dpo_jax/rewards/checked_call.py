"""Calls of reward and preference functions, with what they return checked."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


def call(
  what: str, unit: str, fn: Callable[..., Any], *texts: Sequence[str]
) -> np.ndarray:
  """fn(*texts) as f32[N], a number for each of the N last texts.

  what, unit: name the function and what it judges in errors. ValueError for
  another number of them; RuntimeError, caused by it, for whatever fn raises.
  """
  count = len(texts[-1])
  try:
    values_N = np.asarray(fn(*texts), np.float32)
  except Exception as error:
    raise RuntimeError(
      f'The {what} failed on {count} {unit}: {type(error).__name__}: {error}'
    ) from error
  if values_N.shape != (count,):
    raise ValueError(
      f'The {what} returned an array of shape {values_N.shape} for {count} '
      f'{unit}; expected ({count},).'
    )
  return values_N
