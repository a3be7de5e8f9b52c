"""Means and intervals, from sums, against plain statistics of the samples."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax.training import metrics

NAMES = ('rewards/accuracies', 'rewards/margins')


def _samples(n):
  rng = np.random.default_rng(n)
  accuracies = (rng.random(n) < 0.8).astype(np.float64)
  return dict(zip(NAMES, (accuracies, rng.normal(3, 2, n))))


def _sums(samples, part=slice(None)):
  return {
    name: (jnp.sum(x[part]), jnp.asarray(len(x[part])), jnp.sum(x[part] ** 2))
    for name, x in samples.items()
  }


def test_sums_over_parts_are_those_of_the_whole():
  samples = _samples(50)
  total = None
  for part in (slice(0, 7), slice(7, 8), slice(8, 50)):
    new = _sums(samples, part)
    new['loss'] = new['rewards/margins'][:2]
    total = metrics.add(total, new)
  means = metrics.means(total, prefix='eval/')
  for name, x in samples.items():
    assert means[f'eval/{name}'] == pytest.approx(x.mean(), rel=1e-5)
  assert means['eval/loss'] == means['eval/rewards/margins']
  assert set(metrics.intervals(total, prefix='eval/')) == {
    f'eval/{name}_{end}' for name in NAMES for end in ('low', 'high')
  }


def test_small_steps_are_not_lost_in_a_large_sum():
  """2^24 + 1 is no float32."""
  total = metrics.add(None, {'x': (jnp.float32(2**24), 1)})
  total = metrics.add(total, {'x': (jnp.float32(1), 1)})
  assert metrics.means(total)['x'] == (2**24 + 1) / 2


@pytest.mark.parametrize('n', [2, 10, 256])
def test_interval_of_a_mean(n):
  x = _samples(n)['rewards/margins']
  found = metrics.intervals(metrics.add(None, _sums({'margin': x})))
  half = 1.959964 * x.std(ddof=1) / math.sqrt(n)
  assert found['margin_low'] == pytest.approx(x.mean() - half, rel=1e-4)
  assert found['margin_high'] == pytest.approx(x.mean() + half, rel=1e-4)


@pytest.mark.parametrize(
  ('successes', 'count'), [(0, 256), (256, 256), (223, 256), (1, 2), (3, 7)]
)
def test_interval_of_a_share_holds_the_shares_that_a_score_test_accepts(
  successes, count
):
  """Wilson's definition, point by point."""
  shares = np.linspace(0, 1, 200_001)
  deviation = np.sqrt(shares * (1 - shares) / count)
  accepted = shares[
    np.abs(successes / count - shares) <= 1.959964 * deviation + 1e-12
  ]
  total = {'rewards/accuracies': (successes, count, successes)}
  found = metrics.intervals(total)
  low, high = found['rewards/accuracies_low'], found['rewards/accuracies_high']
  assert low == pytest.approx(accepted.min(), abs=1e-5)
  assert high == pytest.approx(accepted.max(), abs=1e-5)


def test_nothing_counted_is_nan():
  total = {'margins': (0.0, 0.0, 0.0), 'accuracies': (0.0, 0.0, 0.0)}
  assert all(map(math.isnan, metrics.means(total).values()))
  assert all(map(math.isnan, metrics.intervals(total).values()))
  one = metrics.intervals({'margins': (2.0, 1.0, 4.0)})
  assert all(map(math.isnan, one.values()))


def test_equal_values_have_no_width():
  """The difference of squares, 0 but for rounding, can come out negative."""
  found = metrics.intervals({'x': (0.1 * 3, 3.0, 0.1**2 * 3)})
  assert found['x_low'] == pytest.approx(found['x_high'], abs=1e-8)


def test_rows_are_read_as_written(tmp_path):
  rows = [{'step': 0, 'a': 0.1}, {'step': 5, 'a': math.inf, 'b': -math.inf}]
  for row in [*rows, {'step': 9, 'a': math.nan}]:
    metrics.append_jsonl(tmp_path / 'm.jsonl', row)
  with open(tmp_path / 'm.jsonl', 'a') as f:
    f.write('{"step": 10, "a": 0.')
  *found, last = metrics.read_jsonl(tmp_path / 'm.jsonl')
  assert found == rows
  assert last['step'] == 9 and math.isnan(last['a'])
