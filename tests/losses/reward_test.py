"""Losses of reward models, in float64 NumPy and against DPO's."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax import losses
from dpo_jax.losses import reward
from tests.losses import closed_forms
from tests.losses.pairs import random_pairs

RNG = np.random.default_rng(0)
PAIRS = 3 * RNG.normal(size=(7, 2))
RANKED = 2 * RNG.normal(size=(5, 4))
REWARDS = 2 * RNG.normal(size=9)
LABELS = RNG.integers(0, 2, 9).astype(float)
MARGINS = np.abs(RNG.normal(size=7))


def _log_sigmoid(x):
  return -np.logaddexp(0, -x)


def _plackett_luce(rewards):
  """-log of Eq. 18: the product of softmax shares of what is left."""
  out = []
  for r in rewards:
    shares = [np.exp(r[k]) / np.exp(r[k:]).sum() for k in range(len(r))]
    out.append(-np.log(np.prod(shares)))
  return np.array(out)


def _binary(rewards):
  p = 1 / (1 + np.exp(-rewards))
  return -np.log(np.where(LABELS > 0, p, 1 - p))


# name -> (loss of rewards, the same in float64, the rewards).
CASES = {
  'bradley_terry': (
    reward.bradley_terry,
    lambda r: -_log_sigmoid(r[:, 0] - r[:, 1]),
    PAIRS,
  ),
  'margin': (
    functools.partial(reward.bradley_terry, margin=0.7),
    lambda r: -_log_sigmoid(r[:, 0] - r[:, 1] - 0.7),
    PAIRS,
  ),
  'margins': (
    functools.partial(reward.bradley_terry, margin=jnp.float32(MARGINS)),
    lambda r: -_log_sigmoid(r[:, 0] - r[:, 1] - MARGINS),
    PAIRS,
  ),
  'plackett_luce': (reward.plackett_luce, _plackett_luce, RANKED),
  'regression': (
    lambda r: reward.regression(r, jnp.float32(MARGINS)),
    lambda r: (r - MARGINS) ** 2,
    REWARDS[:7],
  ),
  'binary': (
    lambda r: reward.binary(r, jnp.float32(LABELS)),
    _binary,
    REWARDS,
  ),
  'centring': (
    reward.centring,
    lambda r: (r[:, 0] + r[:, 1]) ** 2,
    PAIRS,
  ),
}


@pytest.mark.parametrize('name', CASES)
def test_values_and_gradients_are_the_closed_form(name):
  fn, closed, rewards = CASES[name]
  given = jnp.float32(rewards)
  found = jax.jit(fn)(given)
  assert found.dtype == jnp.float32 and found.shape == rewards.shape[:1]
  np.testing.assert_allclose(found, closed(rewards), rtol=2e-5, atol=1e-6)
  gradient = jax.grad(lambda r: fn(r).sum())(given)
  expected = closed_forms.gradient(lambda r: closed(r).sum(), rewards)
  np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)


def test_every_loss_is_in_the_table():
  assert set(losses.REWARD_LOSSES) == {
    'bradley_terry',
    'plackett_luce',
    'regression',
    'binary',
  }


@pytest.mark.parametrize('beta', [0.05, 0.3])
def test_with_implicit_rewards_the_loss_is_dpos(beta):
  """Eq. 2 with r = beta log(policy / reference) is Eq. 7."""
  pairs = random_pairs(seed=5)
  implicit = beta * (pairs.policy - pairs.reference)
  dpo = losses.PREFERENCE_LOSSES['dpo'](pairs, beta=beta)
  np.testing.assert_allclose(reward.bradley_terry(implicit), dpo, rtol=1e-6)
  ranked = reward.plackett_luce(implicit)
  np.testing.assert_allclose(ranked, dpo, rtol=1e-5)

  def gradient(loss):
    return jax.grad(lambda policy: loss(policy).sum())(pairs.policy)

  np.testing.assert_allclose(
    gradient(lambda p: reward.bradley_terry(beta * (p - pairs.reference))),
    gradient(
      lambda p: losses.PREFERENCE_LOSSES['dpo'](
        pairs.replace(policy=p), beta=beta
      )
    ),
    rtol=1e-5,
  )


def test_a_function_of_the_prompt_does_not_matter():
  """Eqs. 1 and 18 depend on differences; the centring term does not."""
  for fn, rewards in (
    (reward.bradley_terry, PAIRS),
    (reward.plackett_luce, RANKED),
  ):
    shift = RNG.normal(size=(len(rewards), 1))
    np.testing.assert_allclose(
      fn(jnp.float32(rewards + shift)), fn(jnp.float32(rewards)), rtol=1e-4
    )
  assert (reward.centring(jnp.float32(PAIRS + 9)) > 100).all()


def test_probabilities_of_all_rankings_add_up_to_1():
  rewards = RANKED[0]
  orders = [list(x) for x in itertools.permutations(range(4))]
  loss = reward.plackett_luce(jnp.float32(rewards[np.array(orders)]))
  assert float(jnp.exp(-loss).sum()) == pytest.approx(1, rel=1e-5)


def test_extremes_are_finite():
  huge = jnp.array([[1e4, -1e4], [-1e4, 1e4]])
  for fn in (reward.bradley_terry, reward.plackett_luce):
    values, gradient = jax.value_and_grad(lambda r, fn=fn: fn(r).sum())(huge)
    assert jnp.isfinite(values) and jnp.isfinite(gradient).all()
  labels = jnp.array([0.0, 1.0])
  for r in (jnp.array([1e4, -1e4]), jnp.array([-1e4, 1e4])):
    gradient = jax.grad(lambda r: reward.binary(r, labels).sum())(r)
    assert jnp.isfinite(gradient).all()


def test_bfloat16_rewards_are_compared_in_float32():
  given = jnp.bfloat16(PAIRS)
  found = reward.bradley_terry(given)
  assert found.dtype == jnp.float32
  np.testing.assert_array_equal(
    found, reward.bradley_terry(given.astype(jnp.float32))
  )


def test_errors():
  with pytest.raises(ValueError, match=r'rewards are \[5, 4\]; expected'):
    reward.bradley_terry(jnp.zeros((5, 4)))
  with pytest.raises(ValueError, match=r'rewards are \[\]'):
    reward.plackett_luce(jnp.zeros(()))
  with pytest.raises(ValueError, match=r'\[3\] and ratings \[3, 1\]'):
    reward.regression(jnp.zeros(3), jnp.zeros((3, 1)))
  with pytest.raises(ValueError, match=r'\[3\] and labels \[2\]'):
    reward.binary(jnp.zeros(3), jnp.zeros(2))
  with pytest.raises(ValueError, match='margin is -1'):
    reward.bradley_terry(jnp.zeros((5, 2)), margin=-1)
