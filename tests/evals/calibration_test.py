"""Calibration of probabilities, by hand and by simulation."""

import numpy as np
import pytest

from dpo_jax.evals import calibration


def _logit(p):
  return np.log(p / (1 - p))


def test_bins_and_error_by_hand():
  p = np.array([0.55, 0.45, 0.95, 0.98, 0.01])
  out = calibration.statistics(_logit(p))
  low, high = out['bins']
  assert (low['from'], low['to'], low['examples']) == (0.5, 0.6, 2)
  assert low['confidence'] == pytest.approx(0.55)
  assert low['accuracy']['mean'] == 0.5  # One of the two is wrong.
  assert high['from'] == pytest.approx(0.9) and high['examples'] == 3
  assert high['confidence'] == pytest.approx((0.95 + 0.98 + 0.99) / 3)
  assert high['accuracy']['mean'] == pytest.approx(2 / 3)
  gaps = 2 * 0.05 + 3 * abs(2 / 3 - 2.92 / 3)
  assert out['ece'] == pytest.approx(gaps / 5)
  assert out['ties']['mean'] == 0


def test_ties_are_half_right():
  out = calibration.statistics(np.zeros(4))
  assert out['ties']['mean'] == 1 and out['ece'] == 0
  (only,) = out['bins']
  assert only['confidence'] == only['accuracy']['mean'] == 0.5


@pytest.mark.parametrize('scale', [1.0, 3.0])
def test_only_true_probabilities_are_calibrated(scale):
  """Margins that are three times too large have a large error."""
  rng = np.random.default_rng(0)
  truth = rng.normal(size=20_000)
  right = rng.random(20_000) < 1 / (1 + np.exp(-np.abs(truth)))
  margins = np.where(right, 1, -1) * np.abs(truth) * scale
  out = calibration.statistics(margins)
  assert sum(row['examples'] for row in out['bins']) == 20_000
  assert (out['ece'] < 0.01) if scale == 1 else (out['ece'] > 0.1)
  for row in out['bins'] if scale == 1 else ():
    share = row['accuracy']
    assert share['low'] - 0.01 < row['confidence'] < share['high'] + 0.01


def test_extremes_are_finite():
  with np.errstate(all='raise', under='ignore'):
    out = calibration.statistics(np.array([1e4, -1e4]))
  assert out['ece'] == pytest.approx(0.5)
