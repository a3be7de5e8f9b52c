"""DPO and cDPO: the identities of the paper and of its appendix."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax import types
from dpo_jax.losses import preference
from tests.losses.pairs import gradient, random_pairs


def _margin(pairs, beta):
  """beta h in float64, from Eq. 7 of arXiv:2305.18290."""
  policy = np.asarray(pairs.policy, np.float64)
  reference = np.asarray(pairs.reference, np.float64)
  preferred = policy[..., 0] - reference[..., 0]
  rejected = policy[..., 1] - reference[..., 1]
  return beta * (preferred - rejected)


def _sigmoid(x):
  return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize('beta', [0.05, 0.1, 2.0])
def test_dpo_is_equation_7(beta):
  pairs = random_pairs()
  expected = -np.log(_sigmoid(_margin(pairs, beta)))
  np.testing.assert_allclose(
    preference.dpo(pairs, beta=beta), expected, rtol=1e-5
  )


@pytest.mark.parametrize('smoothing', [0.0, 0.2])
def test_at_the_reference_loss_is_log_2_and_weight_one_half(smoothing):
  pairs = random_pairs()
  pairs = pairs.replace(reference=pairs.policy)
  fn = functools.partial(preference.dpo, beta=0.1, label_smoothing=smoothing)
  np.testing.assert_allclose(fn(pairs), np.log(2), rtol=1e-6)
  # cDPO weighs by sigma(-m) - e: arXiv:2305.18290's half, less e.
  weight = 0.1 * (0.5 - smoothing)
  np.testing.assert_allclose(
    gradient(fn, pairs), np.tile([-weight, weight], (7, 1)), rtol=1e-5
  )


@pytest.mark.parametrize('beta', [0.1, 1.0])
def test_gradient_is_the_papers_weighted_form(beta):
  """-beta sigma(r_l - r_w) (grad log pi(y_w) - grad log pi(y_l)), section 4.

  Through log-probs that depend on parameters, as a policy's do.
  """
  rng = np.random.default_rng(1)
  features = jnp.asarray(rng.normal(size=(7, 2, 3)), jnp.float32)
  theta = jnp.asarray(rng.normal(size=3), jnp.float32)
  pairs = random_pairs()

  def logps(theta):
    return -((features @ theta) ** 2)

  def loss(theta):
    return preference.dpo(pairs.replace(policy=logps(theta)), beta=beta).sum()

  jacobian = np.asarray(jax.jacobian(logps)(theta), np.float64)
  margin = _margin(pairs.replace(policy=logps(theta)), beta)
  weight = _sigmoid(-margin)[:, None]
  expected = -beta * (weight * (jacobian[:, 0] - jacobian[:, 1])).sum(0)
  np.testing.assert_allclose(jax.grad(loss)(theta), expected, rtol=1e-4)


@pytest.mark.parametrize('smoothing', [0.01, 0.1, 0.2, 0.45])
def test_cdpo_is_the_cross_entropy_with_flipped_labels(smoothing):
  pairs = random_pairs()
  q = _sigmoid(_margin(pairs, 0.3))
  expected = -(1 - smoothing) * np.log(q) - smoothing * np.log(1 - q)
  fn = functools.partial(preference.dpo, beta=0.3, label_smoothing=smoothing)
  np.testing.assert_allclose(fn(pairs), expected, rtol=1e-5)
  slope = 0.3 * (q - (1 - smoothing))
  np.testing.assert_allclose(
    gradient(fn, pairs), np.stack([slope, -slope], -1), rtol=1e-4, atol=1e-7
  )


def test_cdpo_without_smoothing_is_dpo():
  pairs = random_pairs()
  plain = preference.dpo(pairs, beta=0.3)
  zero = preference.dpo(pairs, beta=0.3, label_smoothing=0.0)
  tiny = preference.dpo(pairs, beta=0.3, label_smoothing=1e-7)
  np.testing.assert_array_equal(zero, plain)
  np.testing.assert_allclose(tiny, plain, rtol=1e-5)


def test_cdpo_is_least_where_the_policy_says_one_minus_e():
  at = np.log(0.8 / 0.2)  # logit(1 - e).
  pairs = types.PairLogps(
    policy=jnp.array([[at / 0.5, 0.0]]),
    reference=jnp.zeros((1, 2)),
    length=jnp.ones((1, 2), jnp.int32),
  )
  fn = functools.partial(preference.dpo, beta=0.5, label_smoothing=0.2)
  np.testing.assert_allclose(gradient(fn, pairs), 0.0, atol=1e-7)


def test_swapping_the_answers_adds_the_margin():
  # -log sigma(-m) = m - log sigma(m).
  pairs = random_pairs()
  swapped = jax.tree.map(lambda x: x[..., ::-1], pairs)
  difference = preference.dpo(swapped, beta=0.3) - preference.dpo(
    pairs, beta=0.3
  )
  np.testing.assert_allclose(difference, _margin(pairs, 0.3), rtol=1e-4)


@pytest.mark.parametrize('smoothing', [0.0, 0.2])
@pytest.mark.parametrize('field', ['policy', 'reference'])
def test_shifting_both_answers_changes_nothing(field, smoothing):
  """r(x, y) + f(x) gives the same preferences: Lemma 1."""
  pairs = random_pairs()
  shift = jnp.asarray(np.random.default_rng(3).normal(size=(7, 1)) * 5)
  moved = pairs.replace(**{field: getattr(pairs, field) + shift})
  fn = functools.partial(preference.dpo, beta=0.3, label_smoothing=smoothing)
  np.testing.assert_allclose(fn(moved), fn(pairs), rtol=1e-4)


@pytest.mark.parametrize('smoothing', [0.0, 0.2])
@pytest.mark.parametrize('h', [-1e4, -300.0, 300.0, 1e4])
def test_extreme_log_ratios_are_exact(h, smoothing):
  pairs = types.PairLogps(
    policy=jnp.array([[h / 2, -h / 2]]),
    reference=jnp.zeros((1, 2)),
    length=jnp.ones((1, 2), jnp.int32),
  )
  fn = functools.partial(preference.dpo, beta=1.0, label_smoothing=smoothing)
  expected = (1 - smoothing) * np.logaddexp(0, -h) + smoothing * np.logaddexp(
    0, h
  )
  np.testing.assert_allclose(fn(pairs), [expected], rtol=1e-6, atol=1e-12)
  slope = (smoothing if h > 0 else smoothing - 1) + 0.0
  np.testing.assert_allclose(
    gradient(fn, pairs), [[slope, -slope]], rtol=1e-6, atol=1e-12
  )
