"""Statistics of comparisons: closed forms, enumeration, coverage."""

import itertools
import math
import warnings

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from dpo_jax.evals import statistics


def test_win_rates_count_ties_or_not():
  outcomes = [1, 1, 1, 0, 0.5, 0.5, 0.5]
  assert statistics.win_rate(outcomes) == 4.5 / 7
  assert statistics.win_rate(outcomes, ties='drop') == 3 / 4
  assert statistics.win_rate([0.9, 0.2]) == pytest.approx(0.55)
  assert math.isnan(statistics.win_rate([0.5], ties='drop'))
  expected = scipy.stats.sem(outcomes)
  assert statistics.standard_error(outcomes) == pytest.approx(expected)


@pytest.mark.parametrize('n', [16, 64, 256])
def test_wilsons_interval_is_the_closed_form_and_covers(n):
  """Coverage: the sum of the probabilities of the counts that cover it."""
  intervals = [statistics.wilson_interval(k, n) for k in range(n + 1)]
  for k, interval in enumerate(intervals):
    known = scipy.stats.binomtest(k, n).proportion_ci(method='wilson')
    np.testing.assert_allclose(interval, known, atol=1e-4)
  low, high = np.array(intervals).T
  coverage = []
  for share in np.linspace(0.05, 0.95, 181):
    mass = scipy.stats.binom.pmf(np.arange(n + 1), n, share)
    coverage.append(mass[(low <= share) & (share <= high)].sum())
  assert min(coverage) > 0.9
  assert np.mean(coverage) == pytest.approx(0.95, abs=0.01)


def _covers(draw, truth, runs=300):
  rng = np.random.default_rng(0)
  hits = 0
  for _ in range(runs):
    _, low, high = draw(rng)
    hits += low <= truth <= high
  return hits / runs


def test_bootstraps_cover_clustered_ones_too():
  """60 prompts; the votes of a prompt share its difficulty."""
  prompts, votes = 60, 5

  def clustered(rng, use=True):
    difficulty = rng.beta(1, 1, size=prompts)
    counts = rng.integers(1, votes + 1, size=prompts)
    ids = np.repeat(np.arange(prompts), counts)
    x = (rng.random(len(ids)) < difficulty[ids]).astype(float)
    clusters = ids if use else None
    return statistics.bootstrap(x, seed=0, draws=400, clusters=clusters)

  def paired(rng):
    easy = rng.random(prompts)
    a = rng.random(prompts) < easy
    b = rng.random(prompts) < 0.5 * easy
    return statistics.paired_bootstrap(a, b, seed=0, draws=400)

  assert 0.92 <= _covers(clustered, 0.5) <= 0.98
  assert _covers(lambda rng: clustered(rng, use=False), 0.5) < 0.9
  assert 0.92 <= _covers(paired, 0.25) <= 0.98


def test_the_bootstrap_is_one_of_means_of_clusters():
  """All 27 draws of 3 clusters, enumerated."""
  values, clusters = [0, 1, 1, 0.5, 1], ['a', 'b', 'b', 'c', 'c']
  groups = [[0], [1, 1], [0.5, 1]]
  means = sorted(
    np.mean([*itertools.chain(*drawn)])
    for drawn in itertools.product(groups, repeat=3)
  )
  with pytest.warns(UserWarning, match='has 3 clusters'):
    mean, low, high = statistics.bootstrap(
      values, seed=0, clusters=clusters, draws=20_000
    )
  assert mean == 0.7 and {low, high} <= {*means}
  assert (low, high) == (means[0], means[-1])
  a, b = np.random.default_rng(0).normal(size=(2, 90))
  again = [statistics.paired_bootstrap(a, b, seed=s) for s in (1, 1, 2)]
  assert again[0] == again[1] != again[2]
  assert again[0][0] == pytest.approx(a.mean() - b.mean())


def test_enough_clusters_do_not_warn():
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    statistics.bootstrap(np.arange(60) / 60, seed=0, draws=10)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1))
def test_mcnemar_is_a_binomial_test(pairs):
  a, b = np.array(pairs).T
  wins, losses = (a & ~b).sum(), (b & ~a).sum()
  expected = 1.0
  if wins + losses:
    expected = scipy.stats.binomtest(wins, wins + losses).pvalue
  assert statistics.mcnemar(a, b) == pytest.approx(expected)


def test_position_bias_is_the_share_of_the_first():
  bias = statistics.position_bias([1, 0, 1, 0.5], [True, False, False, True])
  assert bias['mean'] == (1 + 1 + 0 + 0.5) / 4
  assert bias['low'] < bias['mean'] < bias['high']


def test_both_orders_of_a_prompt_are_one_cluster():
  """Said twice, nothing is known better."""
  first = [True] * 60 + [False] * 20
  once = statistics.position_bias([1] * 80, first)
  twice = statistics.position_bias(
    [1] * 160, 2 * first, clusters=2 * list(range(80))
  )
  alone = statistics.wilson_interval(120, 160)
  assert twice['mean'] == once['mean'] == 0.75
  assert twice['low'] == pytest.approx(once['low'], abs=0.02)
  assert twice['low'] < alone[0] - 0.02 and twice['high'] > alone[1] + 0.02


def test_cohens_kappa_of_a_known_table():
  """Cohen's 1960 form: 20, 5, 10, 15 of 50 give 0.4."""
  cells = [('y', 'y', 20), ('y', 'n', 5), ('n', 'y', 10), ('n', 'n', 15)]
  a, b = zip(*[(x, y) for x, y, n in cells for _ in range(n)])
  assert statistics.agreement(a, b) == 0.7
  assert statistics.cohen_kappa(a, b) == pytest.approx(0.4)
  assert statistics.cohen_kappa(a, a) == 1
  assert math.isnan(statistics.cohen_kappa('yy', 'yy'))
  rng = np.random.default_rng(0)
  x, y = rng.integers(3, size=(2, 100_000))
  assert abs(statistics.cohen_kappa(x, y)) < 0.01


def test_fleiss_kappa_of_a_known_table():
  """Ten items, fourteen raters and five categories: 0.210 (Fleiss, 1971)."""
  counts = [
    [0, 0, 0, 0, 14],
    [0, 2, 6, 4, 2],
    [0, 0, 3, 5, 6],
    [0, 3, 9, 2, 0],
    [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0],
    [3, 2, 6, 3, 0],
    [2, 5, 3, 2, 2],
    [6, 5, 2, 1, 0],
    [0, 2, 2, 3, 7],
  ]
  assert statistics.fleiss_kappa(counts) == pytest.approx(0.210, abs=5e-4)
  assert statistics.fleiss_kappa([[3, 0], [0, 3]]) == 1
  assert math.isnan(statistics.fleiss_kappa([[3, 0], [3, 0]]))


def test_agreement_with_people():
  votes, judge = [['A', 'A', 'B'], ['B'], ['A', 'A']], ['A', 'A', 'A']
  found = statistics.agreement_with_people(votes, judge)
  assert found == dict(human_human=2 / 4, human_judge=4 / 6, pairs=4, votes=6)
  alone = statistics.agreement_with_people([['A']], ['A'])
  assert math.isnan(alone['human_human']) and alone['human_judge'] == 1


def _power_of_independent(n, p, q):
  """Of the pooled z-test of two shares, summed over all counts."""
  k = np.arange(n + 1)
  x, y = k[:, None] / n, k[None] / n
  mean = (x + y) / 2
  with np.errstate(invalid='ignore'):
    z = (x - y) / np.sqrt(2 * mean * (1 - mean) / n)
  rejects = np.abs(np.nan_to_num(z)) > scipy.stats.norm.ppf(0.975)
  mass = (scipy.stats.binom.pmf(k, n, s) for s in (p, q))
  a, b = mass
  return float(a @ rejects @ b)


def test_required_prompts_reach_their_power():
  """As many as `power.prop.test` of R gives; the power by enumeration."""
  assert statistics.required_prompts(0.5, 0.75) == 58
  assert statistics.required_prompts(0.5, 0.75, power=0.9) == 77
  # DPO against PPO in Section 6.2 of the paper, which had 256.
  gap = statistics.required_prompts(158 / 256, 146 / 256)
  assert 1650 < gap < 1750
  for p, q in ((0.5, 0.6), (0.3, 0.5), (0.9, 0.8)):
    n = statistics.required_prompts(p, q)
    assert _power_of_independent(n, p, q) == pytest.approx(0.8, abs=0.02)


def test_required_prompts_of_pairs_reach_their_power():
  rng = np.random.default_rng(0)
  for wins, losses in ((0.25, 0.15), (0.4, 0.2)):
    n = statistics.required_prompts_paired(wins, losses)
    apart = [wins, losses, 1 - wins - losses]
    x, y, _ = rng.multinomial(n, apart, size=200_000).T
    z = (x - y) / np.sqrt(np.maximum(x + y, 1))
    power = (np.abs(z) > scipy.stats.norm.ppf(0.975)).mean()
    assert power == pytest.approx(0.8, abs=0.02)
  # Both are good on 0.3 of all prompts: more than by chance.
  paired = statistics.required_prompts_paired(0.25, 0.15)
  assert paired < statistics.required_prompts(0.55, 0.45)


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    (lambda s: s.win_rate([0.2, 1.5]), 'outcomes has 1.5; expected'),
    (lambda s: s.win_rate([]), 'one or more finite numbers'),
    (lambda s: s.win_rate([1], ties='halves'), "Did you mean 'half'"),
    (lambda s: s.wilson_interval(5, 4), 'wins is 5 of n = 4'),
    (lambda s: s.wilson_interval(0, 0), 'wins is 0 of n = 0'),
    (lambda s: s.mcnemar([1, 0.5], [0, 0]), 'outcomes 0 and 1'),
    (lambda s: s.mcnemar([1, 0], [0]), '2 and 1 items'),
    (lambda s: s.agreement('ab', 'abc'), '2 and 3 items'),
    (lambda s: s.fleiss_kappa([[2, 0], [1, 2]]), 'same number of raters'),
    (lambda s: s.fleiss_kappa([[1, 0]]), 'two or more'),
    (lambda s: s.required_prompts(0.5, 0.5), 'no number tells them apart'),
    (lambda s: s.required_prompts(0.5, 1.1), 'q is 1.1'),
    (lambda s: s.required_prompts(0.5, 0.6, power=1.0), 'power is 1.0'),
    (lambda s: s.required_prompts_paired(0.6, 0.5), 'wins . losses is 1.1'),
    (lambda s: s.bootstrap([1, 2], seed=0, clusters=[1]), '2 values, but 1'),
    (lambda s: s.paired_bootstrap([1], [1, 2], seed=0), '1 and 2 items'),
  ],
)
def test_what_cannot_be(call, message):
  with pytest.raises(ValueError, match=message):
    call(statistics)
