"""Gradients of a policy whose nine completions can all be enumerated.

Two tokens of three, from logits of the first and, after each first, of the
second. Expectations are exact sums; the exact gradient of the expected reward
is a finite difference in float64.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax.losses import policy_gradient
from tests.losses import closed_forms

LOGITS = np.random.default_rng(0).normal(size=(4, 3))
COMPLETIONS = np.array(list(itertools.product(range(3), repeat=2)))
REWARDS = np.random.default_rng(1).normal(size=9) + 0.5


def _logps(logits):
  """[9, 2]: log-probabilities of the tokens of every completion."""
  first, second = COMPLETIONS.T
  np_or_jnp = jnp if isinstance(logits, jax.Array) else np
  logps = logits - np_or_jnp.log(np_or_jnp.exp(logits).sum(1, keepdims=True))
  return np_or_jnp.stack([logps[0, first], logps[1 + first, second]], axis=1)


PROBABILITIES = np.exp(_logps(LOGITS).sum(1))


def _exact(rewards=REWARDS):
  """The gradient of sum_y pi(y) r(y) in the logits, [4, 3]."""
  return closed_forms.gradient(
    lambda logits: np.exp(_logps(logits).sum(1)) @ rewards, LOGITS
  )


@jax.jit
def _gradient(advantages, weights):
  """Of -ppo_policy_loss, summed over tokens and, weighted, over completions.

  The policy is the one that sampled: all ratios are 1.
  """
  logits = jnp.float32(LOGITS)

  def loss(new):
    advantages_9x2 = jnp.broadcast_to(advantages[:, None], (9, 2))
    losses = policy_gradient.ppo_policy_loss(
      _logps(new), _logps(logits), advantages_9x2, clip=0.2
    )
    return -losses.sum(1) @ weights

  return jax.grad(loss)(logits)


def _of_each(advantages):
  """float64[9, 12]: the gradient estimate that each completion gives."""
  each = jax.vmap(_gradient, (None, 0))(jnp.float32(advantages), jnp.eye(9))
  return np.float64(each).reshape(9, 12)


def _mean_and_variance(advantages):
  """Exact mean and total variance of the estimate from one completion."""
  each = _of_each(advantages)
  mean = PROBABILITIES @ each
  return mean, PROBABILITIES @ ((each - mean) ** 2).sum(1)


def _of_groups(advantages_of, samples, rewards=REWARDS):
  """The exact mean over all tuples of K completions, [4, 3]."""
  tuples = np.array(list(itertools.product(range(9), repeat=samples)))
  weights = PROBABILITIES[tuples].prod(1, keepdims=True) / samples
  advantages = np.float64(advantages_of(rewards[tuples]))
  # An advantage enters linearly: what each completion has over all tuples.
  total = np.bincount(tuples.ravel(), (weights * advantages).ravel())
  return (total @ _of_each(np.ones(9))).reshape(4, 3)


def _close(ours, expected):
  np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


def _cosine(a, b):
  return np.sum(a * b) / np.sqrt(np.sum(a * a) * np.sum(b * b))


def test_expected_gradient_is_that_of_the_expected_reward():
  gradient = _gradient(jnp.float32(REWARDS), jnp.float32(PROBABILITIES))
  assert np.abs(gradient).max() > 0.1
  _close(gradient, _exact())


def test_reinforce_is_within_its_monte_carlo_error():
  each = _of_each(REWARDS)
  draws = np.random.default_rng(2).choice(9, size=20_000, p=PROBABILITIES)
  error = each[draws].std(0, ddof=1) / np.sqrt(len(draws))
  deviation = each[draws].mean(0) - _exact().ravel()
  assert (np.abs(deviation) < 4 * error).all()
  assert np.abs(_exact().ravel() / error).max() > 20


def test_a_baseline_leaves_the_mean_gradient_and_lowers_the_variance():
  mean, variance = _mean_and_variance(REWARDS)
  _close(mean.reshape(4, 3), _exact())
  value = PROBABILITIES @ REWARDS
  for baseline in (value, -5.0, 20.0):
    shifted, _ = _mean_and_variance(REWARDS - baseline)
    np.testing.assert_allclose(shifted, mean, atol=1e-7 * (1 + abs(baseline)))
  assert _mean_and_variance(REWARDS - value)[1] < 0.9 * variance
  assert _mean_and_variance(REWARDS + 5.0)[1] > 2 * variance


@pytest.mark.parametrize('samples', [2, 3])
def test_leave_one_out_is_unbiased(samples):
  _close(_of_groups(policy_gradient.leave_one_out, samples), _exact())


@pytest.mark.parametrize('samples', [2, 3])
def test_unscaled_group_relative_is_short_by_one_sample(samples):
  """The bias of a baseline that has its own score in it: (K - 1) / K."""

  def centred(scores):
    return policy_gradient.group_relative(scores, scale=False)

  share = (samples - 1) / samples
  _close(_of_groups(centred, samples), share * _exact())


def test_scaled_group_relative_has_the_bias_of_its_definition():
  """Sums over all triples, written out in float64."""
  expected = np.zeros(9)
  for triple in itertools.product(range(9), repeat=3):
    scores = REWARDS[list(triple)]
    scaled = (scores - scores.mean()) / (scores.std(ddof=1) + 1e-4)
    for completion, advantage in zip(triple, scaled, strict=True):
      expected[completion] += PROBABILITIES[list(triple)].prod() * advantage / 3
  score_function = np.stack(
    [
      closed_forms.gradient(lambda x, y=y: _logps(x).sum(1)[y], LOGITS)
      for y in range(9)
    ]
  )
  gradient = _of_groups(policy_gradient.group_relative, 3)
  _close(gradient, np.tensordot(expected, score_function, 1))
  assert _cosine(gradient, _exact()) < 0.999


def test_scaled_pairs_follow_win_rates_instead_of_rewards():
  """With K = 2 an advantage is the sign of the difference over sqrt(2).

  So that the mean gradient is that of wins minus losses against the policy's
  own samples, whatever the rewards' scale is.
  """
  wins = np.sign(REWARDS[:, None] - REWARDS) @ PROBABILITIES
  expected = _exact(wins / np.sqrt(2))
  for size in (100.0, 1e4):
    gradient = _of_groups(policy_gradient.group_relative, 2, size * REWARDS)
    np.testing.assert_allclose(gradient, expected, atol=1e-4)
  assert _cosine(expected, _exact()) < 0.999


def test_gradients_of_kl_estimates_are_not_the_kls():
  """On samples of the policy: 0 for k1, that of the other direction for k3."""
  reference = np.roll(LOGITS, 1, axis=1)
  reference_logps, logits = jnp.float32(_logps(reference)), jnp.float32(LOGITS)

  def mean_gradient(name):
    def mean(new):
      kl = policy_gradient.kl_estimates[name](_logps(new), reference_logps)
      return jnp.float32(PROBABILITIES) @ kl.sum(1)

    return jax.grad(mean)(logits)

  def first_token(logits):
    p, q = (np.exp(x[0]) / np.exp(x[0]).sum() for x in (logits, reference))
    return q @ np.log(q / p)

  _close(mean_gradient('k1'), 0.0)
  _close(mean_gradient('k3')[0], closed_forms.gradient(first_token, LOGITS)[0])
