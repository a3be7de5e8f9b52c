"""Statistics of per-example numbers, against loops and textbook formulas."""

import itertools
import math

import numpy as np
import pytest

from dpo_jax.evals import likelihood

RNG = np.random.default_rng(0)


def test_perplexity_is_of_tokens_and_not_of_completions():
  logps, tokens = np.array([-2.0, -9.0, -1.0]), np.array([4, 3, 1])
  found = likelihood.perplexity(logps, tokens)
  assert found['mean'] == pytest.approx(math.exp(12 / 8))
  assert found['nats_per_token'] == pytest.approx(12 / 8)
  assert found['tokens'] == 8


def test_the_interval_of_perplexity_covers_what_resampling_does():
  """The delta method against 4,000 bootstrap samples of the completions."""
  tokens = RNG.integers(3, 40, 400)
  logps = -tokens * RNG.gamma(4.0, 0.5, 400)
  found = likelihood.perplexity(logps, tokens)
  picks = RNG.integers(0, 400, (4000, 400))
  ratios = np.exp(-logps[picks].sum(axis=1) / tokens[picks].sum(axis=1))
  low, high = np.quantile(ratios, [0.025, 0.975])
  width = high - low
  assert found['low'] == pytest.approx(low, abs=0.08 * width)
  assert found['high'] == pytest.approx(high, abs=0.08 * width)
  assert likelihood.perplexity(2 * logps, 2 * tokens) == pytest.approx(
    found | {'tokens': 2 * found['tokens']}
  )


def test_one_completion_has_no_interval():
  found = likelihood.perplexity(np.array([-3.0]), np.array([2]))
  assert found['mean'] == pytest.approx(math.exp(1.5))
  assert math.isnan(found['low']) and math.isnan(found['high'])


def test_means_and_shares_have_their_intervals():
  x = RNG.normal(size=50)
  found = likelihood.mean(x)
  half = 1.959964 * x.std(ddof=1) / math.sqrt(50)
  assert found['mean'] == pytest.approx(x.mean())
  assert found['low'] == pytest.approx(x.mean() - half)
  assert found['high'] == pytest.approx(x.mean() + half)
  # Wilson's interval of 2 of 5: E.B. Wilson, J. Am. Stat. Assoc. 22, 1927.
  found = likelihood.share(np.array([1.0, 0, 0, 1, 0]))
  assert found['mean'] == 0.4
  assert found['low'] == pytest.approx(0.1176, abs=1e-4)
  assert found['high'] == pytest.approx(0.7693, abs=1e-4)


@pytest.mark.parametrize(
  ('lengths', 'expected'),
  [
    ([1, 2, 3, 4, 5, 6, 7, 8], [0, 0, 1, 1, 2, 2, 3, 3]),
    # Equal lengths stay together, in whatever order they come.
    ([5, 1, 5, 5, 5, 5, 9, 5], [0, 0, 0, 0, 0, 0, 1, 0]),
    ([3, 3, 3], [0, 0, 0]),
    ([-4, 0, 7], [0, 1, 2]),
    ([7], [0]),
  ],
)
def test_bins_are_quantiles(lengths, expected):
  found = likelihood.bins(np.array(lengths))
  assert found.tolist() == expected


def test_bins_hold_about_equally_many_and_lose_none():
  lengths = RNG.integers(0, 1000, 4001)
  for num_bins in (1, 3, 4, 10):
    counts = np.bincount(likelihood.bins(lengths, num_bins))
    assert counts.sum() == 4001 and len(counts) == num_bins
    assert counts.max() - counts.min() < 40


def test_by_length_is_what_a_loop_finds():
  lengths = RNG.integers(-20, 20, 200)
  values = dict(
    accuracy=(RNG.random(200) < 0.7).astype(np.float32),
    margin=RNG.normal(size=200).astype(np.float32),
  )
  rows = likelihood.by_length(values, lengths)
  assert sum(row['examples'] for row in rows) == 200
  ends = [(row['from'], row['to']) for row in rows]
  assert ends == sorted(ends)
  assert all(a[1] < b[0] for a, b in itertools.pairwise(ends))
  for row in rows:
    inside = [i for i in range(200) if row['from'] <= lengths[i] <= row['to']]
    assert len(inside) == row['examples']
    for name, of in (
      ('accuracy', likelihood.share),
      ('margin', likelihood.mean),
    ):
      alone = of(np.array([values[name][i] for i in inside], np.float64))
      assert row[name] == pytest.approx(alone)
