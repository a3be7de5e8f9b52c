"""Best-of-n: the estimator by brute force, its KL and the KL's bound."""

import itertools
import math

import jax
import numpy as np
import pytest

from dpo_jax import models, rewards, sampling
from dpo_jax.evals import best_of_n, statistics
from tests import forests


@pytest.mark.parametrize('scale', [1.0, 1e4])
@pytest.mark.parametrize('ties', [False, True])
def test_the_expected_maximum_is_that_of_all_subsets(ties, scale):
  rng = np.random.default_rng(0)
  for m in range(1, 9):
    scores = rng.normal(size=(3, m)) * scale
    scores = np.round(scores / scale) * scale if ties else scores
    for n in range(1, m + 1):
      subsets = itertools.combinations(scores.T, n)
      expected = np.mean([np.max(x, axis=0) for x in subsets], axis=0)
      found = statistics.best_of_n(scores, n)
      assert found.dtype == np.float32 and found.shape == (3,)
      np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6 * scale)


def test_one_is_the_mean_and_all_is_the_maximum():
  scores = np.random.default_rng(1).normal(size=(4, 5000)) + 7
  np.testing.assert_allclose(
    statistics.best_of_n(scores, 1), scores.mean(1), rtol=1e-6
  )
  np.testing.assert_array_equal(
    statistics.best_of_n(scores, 5000), np.float32(scores.max(1))
  )


@pytest.mark.parametrize('n', [2, 50, 2500, 4999])
def test_thousands_of_samples_are_exact(n):
  """Weights as fractions of integers, which neither round nor overflow."""
  m = 5000
  scores = np.random.default_rng(n).normal(size=(1, m))
  total = math.comb(m, n)
  ordered = np.sort(scores[0])
  exact = math.fsum(
    float(ordered[i]) * (math.comb(i, n - 1) / total) for i in range(n - 1, m)
  )
  np.testing.assert_allclose(statistics.best_of_n(scores, n), exact, rtol=2e-7)


def test_it_is_unbiased():
  """Its mean over sets of samples is the expected maximum of a new set."""
  rng = np.random.default_rng(2)
  for n in (1, 3, 8):
    found = statistics.best_of_n(rng.uniform(size=(20_000, 8)), n)
    error = found.std() / math.sqrt(len(found))
    assert abs(found.mean() - n / (n + 1)) < 4 * error


@pytest.mark.parametrize(
  ('n', 'message'),
  [
    (0, 'n is 0; expected 1'),
    (-1, 'n is -1; expected 1'),
    (4, 'n is 4, but there are 3 scores per prompt'),
    (1.5, r'n is 1\.5; expected an integer'),
  ],
)
def test_impossible_numbers_of_samples(n, message):
  with pytest.raises(ValueError, match=message):
    statistics.best_of_n(np.zeros((2, 3)), n)
  if n != 4:
    with pytest.raises(ValueError, match=message):
      statistics.best_of_n_kl_bound(n)


# The KL of best-of-n.


def _best_of_n(probs_K, scores_K, n):
  """The exact distribution of the best of n, the first one of equal scores."""
  _, group_K = np.unique(scores_K, return_inverse=True)
  mass_G = np.bincount(group_K, probs_K)
  below_G = np.append(0.0, np.cumsum(mass_G)) ** n
  # The best is of this group; which one of the group does not depend on n.
  return np.diff(below_G)[group_K] * probs_K / mass_G[group_K]


def _kl(q_K, p_K):
  seen = q_K > 0
  return (q_K[seen] * np.log(q_K[seen] / p_K[seen])).sum()


NS = [1, 2, 4, 16, 64, 1000]


@pytest.mark.parametrize('n', NS)
@pytest.mark.parametrize('kind', ['random', 'a certain one'])
def test_the_kl_is_at_most_its_bound(kind, n):
  rng = np.random.default_rng(NS.index(n))
  bound = statistics.best_of_n_kl_bound(n)
  for _ in range(20):
    probs = rng.dirichlet(np.full(50, 0.3)) + 1e-9
    scores = rng.normal(size=50)
    if kind == 'a certain one':
      probs[0] = 100
    probs /= probs.sum()
    best = _best_of_n(probs, scores, n)
    assert best.sum() == pytest.approx(1)
    # Ties are a coarser choice, which moves less.
    tied = _best_of_n(probs, np.round(scores), n)
    assert tied.sum() == pytest.approx(1)
    assert _kl(tied, probs) <= _kl(best, probs) + 1e-12 <= bound + 2e-12


@pytest.mark.parametrize('n', NS)
def test_the_bound_is_the_kl_of_continuous_scores(n):
  gaps = []
  for k in (10**4, 10**6):
    probs = np.full(k, 1 / k)
    exact = _kl(_best_of_n(probs, np.arange(k), n), probs)
    gaps.append(statistics.best_of_n_kl_bound(n) - exact)
  # Up to the rounding of sums of a million.
  assert -1e-7 <= gaps[1] <= gaps[0] + 1e-7
  assert gaps[1] < 1e-3


def test_published_bounds():
  """Of 4, 16, 64, 128 and 256 samples, in nats."""
  found = [statistics.best_of_n_kl_bound(n) for n in (4, 16, 64, 128, 256)]
  np.testing.assert_allclose(
    found, [0.636, 1.835, 3.175, 3.860, 4.549], atol=6e-4
  )


def test_the_kl_that_is_measured_is_the_exact_one():
  """Real samples of one token, of which a reward chooses the best of four."""
  config, n, num_prompts = forests.CONFIG, 4, 4096
  params, prompt = forests.params(0, config), [3, 5]
  drawn = sampling.sample(
    params,
    config,
    [prompt] * num_prompts,
    key=jax.random.key(0),
    max_new_tokens=1,
    num_samples=n,
  )
  tokens = drawn.tokens_BxSxT[..., 0].ravel().tolist()
  # Every third token has the same score.
  scores = np.random.default_rng(0).normal(size=config.vocab_size)
  scores[::3] = 0.5
  reward = rewards.Reward(
    'table', lambda prompts, texts: scores[list(map(int, texts))]
  )
  values = rewards.as_json(reward([''] * len(tokens), list(map(str, tokens))))
  rows = [{'id': t, 'table': x} for t, x in zip(tokens, values)]
  best = best_of_n.choose(rows, n, 'table')
  counts = np.bincount([row['id'] for row in best], minlength=len(scores))
  hidden = models.forward(params, config, np.array([prompt]))
  logits = np.asarray(models.logits(params, config, hidden[0, -1]), np.float64)
  probs = np.exp(logits - logits.max())
  probs /= probs.sum()
  expected = _best_of_n(probs, scores, n)
  exact = _kl(expected, probs)
  # The plug-in estimate is too large by (K - 1) / 2 N.
  bias = ((expected > 0).sum() - 1) / 2 / num_prompts
  log_ratio = np.log(expected / probs)
  spread = math.sqrt((expected * (log_ratio - exact) ** 2).sum() / num_prompts)
  measured = _kl(counts / num_prompts, probs)
  assert abs(measured - bias - exact) < 4 * spread
  assert exact < statistics.best_of_n_kl_bound(n)
  # What would be measured without a choice is far away.
  assert exact > 20 * spread
