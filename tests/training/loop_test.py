"""The loop's own account of a run: rows, and what a checkpoint carries."""

import json
import math

import numpy as np

from dpo_jax.training import loop


def test_progress_survives_json_bit_for_bit():
  window = loop.Window(
    metrics={'loss': (0.1 + 0.2, 3.0), 'm': (math.nan, math.inf, 1 / 3)},
    seconds=1e-17,
    tokens=5,
    examples=2,
    flops=1e15 / 3,
    steps=4,
    nonfinite=1,
  )
  progress = loop.Progress(skipped=2, in_a_row=1, window=window)
  text = json.dumps(progress.to_json())
  again = loop.Progress.from_json(json.loads(text))
  assert json.dumps(again.to_json()) == text
  assert again._replace(window=None) == progress._replace(window=None)
  for a, b in zip(window.metrics.values(), again.window.metrics.values()):
    np.testing.assert_array_equal(a, b)
  assert isinstance(again.window.metrics['m'], tuple)
