"""Rewards of tokens, advantages, whitening and KL against loops in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax.losses import policy_gradient
from tests.losses import closed_forms

B, T = 7, 6
LENGTHS = np.array([6, 1, 0, 3, 5, 2, 6])
MASK = np.arange(T) < LENGTHS[:, None]


def _random(seed, scale=1.0):
  """f64[B, T] that float32 holds exactly; NaN at padding."""
  values = np.random.default_rng(seed).normal(size=(B, T), scale=scale)
  return np.where(MASK, np.float64(np.float32(values)), np.nan)


def _real(x):
  return np.asarray(x, np.float64)[MASK]


def _padding_is_0(x):
  assert x.dtype == jnp.float32
  np.testing.assert_array_equal(np.asarray(x)[~MASK], 0.0)


def _close(ours, expected, **tolerance):
  tolerance = dict(rtol=2e-5, atol=2e-6) | tolerance
  np.testing.assert_allclose(ours, expected, **tolerance)


def _advantages(rewards, values, mask=MASK, **options):
  fn = functools.partial(policy_gradient.generalized_advantages, **options)
  return jax.jit(fn)(rewards, values, mask)


# Generalised advantages.


def _advantages_by_definition(rewards, values, discount, gae_lambda):
  """Eq. 16 of arXiv:1506.02438: a sum over the rest of the episode, per t."""
  out = np.zeros((B, T))
  for b, length in enumerate(LENGTHS):
    value = [*values[b, :length], 0.0]
    for t in range(length):
      for later in range(t, length):
        delta = rewards[b, later] - value[later] + discount * value[later + 1]
        out[b, t] += (discount * gae_lambda) ** (later - t) * delta
  return out


@pytest.mark.parametrize('gae_lambda', [0.0, 0.5, 0.95, 1.0])
@pytest.mark.parametrize('discount', [0.0, 0.9, 1.0])
def test_advantages_are_the_definitions_sums(discount, gae_lambda):
  rewards, values = _random(0), _random(1)
  advantages, returns = _advantages(
    rewards, values, discount=discount, gae_lambda=gae_lambda
  )
  expected = _advantages_by_definition(rewards, values, discount, gae_lambda)
  _close(advantages, expected)
  _close(_real(returns), (expected + values)[MASK])
  _padding_is_0(advantages)
  _padding_is_0(returns)


def test_with_lambda_1_returns_are_discounted_sums_of_rewards():
  rewards, values = _random(0), _random(1)
  advantages, returns = _advantages(
    rewards, values, discount=0.9, gae_lambda=1.0
  )
  for b, length in enumerate(LENGTHS):
    for t in range(length):
      expected = sum(0.9**i * r for i, r in enumerate(rewards[b, t:length]))
      _close(returns[b, t], expected)
      _close(advantages[b, t], expected - values[b, t])


def test_with_lambda_0_advantages_are_residuals_of_one_step():
  rewards, values = _random(0), _random(1)
  advantages, returns = _advantages(
    rewards, values, discount=0.9, gae_lambda=0.0
  )
  for b, length in enumerate(LENGTHS):
    for t in range(length):
      next_value = values[b, t + 1] if t + 1 < length else 0.0
      _close(returns[b, t], rewards[b, t] + 0.9 * next_value)
      _close(advantages[b, t], returns[b, t] - values[b, t])


def test_perfect_values_leave_no_advantage():
  """Deterministic rewards, values that are their sums: any lambda gives 0."""
  rewards = _random(0)
  values = np.cumsum(np.nan_to_num(rewards)[:, ::-1], axis=1)[:, ::-1]
  advantages, returns = _advantages(
    rewards, values, discount=1.0, gae_lambda=0.7
  )
  _close(advantages, np.zeros((B, T)))
  _close(_real(returns), values[MASK])


def test_rows_do_not_depend_on_their_padding():
  rewards, values = _random(0), _random(1)
  options = dict(discount=0.9, gae_lambda=0.8)
  padded = _advantages(rewards, values, **options)
  for b, length in enumerate(LENGTHS):
    row = (slice(b, b + 1), slice(0, length))
    alone = _advantages(rewards[row], values[row], MASK[row], **options)
    for ours, other in zip(padded, alone, strict=True):
      _close(ours[row], other, rtol=1e-6)


# Rewards of tokens and estimates of the KL.


def test_rewards_of_tokens_are_penalties_and_a_score_at_the_end():
  kl = _random(0)
  scores = np.random.default_rng(1).normal(size=B)
  scores[LENGTHS == 0] = np.nan
  fn = functools.partial(policy_gradient.token_rewards, kl_coefficient=0.3)
  rewards = jax.jit(fn)(scores, kl, MASK)
  _padding_is_0(rewards)
  for b, length in enumerate(LENGTHS):
    expected = [-0.3 * kl[b, t] for t in range(length)]
    if length:
      expected[-1] += scores[b]
    _close(rewards[b, :length], expected)


def test_the_penaltys_coefficient_may_be_traced():
  fn = jax.jit(
    lambda coefficient: policy_gradient.token_rewards(
      jnp.ones(B), jnp.ones((B, T)), MASK, kl_coefficient=coefficient
    )
  )
  _close(fn(0.25)[0], [-0.25] * (T - 1) + [0.75])
  _close(fn(0.5)[0], [-0.5] * (T - 1) + [0.5])


def _schulman(name, logps, reference_logps):
  r = np.exp(np.float64(reference_logps) - np.float64(logps))
  return {'k1': -np.log(r), 'k3': (r - 1) - np.log(r)}[name]


@pytest.mark.parametrize('name', ['k1', 'k3'])
def test_kl_estimates_are_schulmans(name):
  logps, reference = np.float32(_random(0)), np.float32(_random(1))
  ours = jax.jit(policy_gradient.kl_estimates[name])(logps, reference)
  expected = _schulman(name, logps, reference)
  _close(_real(ours), expected[MASK])
  total = jax.grad(
    lambda x: policy_gradient.kl_estimates[name](x, reference[MASK]).sum()
  )(logps[MASK])
  reference = np.float64(reference[MASK])
  _close(
    total,
    closed_forms.gradient(
      lambda x: _schulman(name, x, reference).sum(), np.float64(logps[MASK])
    ),
    rtol=1e-4,
  )


@pytest.mark.parametrize('name', ['k1', 'k3'])
def test_kl_estimates_are_unbiased(name):
  rng = np.random.default_rng(0)
  p, q = rng.dirichlet(np.ones(8), size=2)
  estimates = policy_gradient.kl_estimates[name](np.log(p), np.log(q))
  _close(np.sum(p * np.float64(estimates)), np.sum(p * np.log(p / q)))


def test_k3_is_never_negative_and_exact_for_small_differences():
  k1, k3 = (policy_gradient.kl_estimates[name] for name in ('k1', 'k3'))
  logps = np.float32(-np.exp(np.linspace(-20, 2, 400)))
  for sign in (1, -1):
    difference = np.float64(sign * logps)
    ours = k3(jnp.zeros(400), np.float32(difference))
    assert (ours >= 0).all()
    np.testing.assert_allclose(
      ours, np.expm1(difference) - difference, rtol=1e-2, atol=1e-12
    )
  extreme = jnp.array([0.0, -1e4])
  np.testing.assert_array_equal(k1(extreme, extreme), 0.0)
  np.testing.assert_array_equal(k3(extreme, extreme), 0.0)
  np.testing.assert_array_equal(k1(extreme, extreme[::-1]), [1e4, -1e4])
  np.testing.assert_array_equal(k3(extreme, extreme[::-1]), [9999, np.inf])


# Whitening and explained variance.


@pytest.mark.parametrize('shift_mean', [True, False])
def test_whitened_entries_have_variance_1_and_mean_0_or_their_own(shift_mean):
  values = 5 + _random(0, scale=3.0)
  fn = functools.partial(policy_gradient.whiten, shift_mean=shift_mean)
  ours = jax.jit(fn)(values, MASK)
  _padding_is_0(ours)
  real = values[MASK]
  mean = sum(real) / len(real)
  variance = sum((x - mean) ** 2 for x in real) / (len(real) - 1)
  shift = 0.0 if shift_mean else mean
  _close(_real(ours), (real - mean) / np.sqrt(variance + 1e-8) + shift)
  _close(_real(ours).mean(), shift)
  _close(_real(ours).var(ddof=1), 1.0)


def test_whitening_takes_single_equal_and_no_entries():
  one = np.arange(T)[None] < 1
  values = jnp.full((1, T), 3.0)
  for mask in (one, one | True, one & False):
    white = policy_gradient.whiten(values, mask)
    np.testing.assert_array_equal(white, 0.0)
    kept = policy_gradient.whiten(values, mask, shift_mean=False)
    np.testing.assert_array_equal(kept, 3.0 * mask)


def test_explained_variance_is_what_values_explain():
  values, returns = _random(0), _random(1)
  fn = jax.jit(policy_gradient.explained_variance)
  v, r = values[MASK], returns[MASK]
  residual = sum((r - v - np.mean(r - v)) ** 2)
  expected = 1 - residual / sum((r - np.mean(r)) ** 2)
  ours = fn(values, returns, MASK)
  assert ours.shape == () and ours.dtype == jnp.float32
  _close(ours, expected)
  _close(fn(returns + 2.0, returns, MASK), 1.0)
  _close(fn(np.zeros_like(returns), returns, MASK), 0.0, atol=1e-6)
  _close(fn(-returns, returns, MASK), -3.0)
  assert fn(values, np.ones_like(returns), MASK) == 0.0


# The adaptive KL coefficient.


def test_the_controller_follows_a_written_out_sequence():
  """Sec. 2.2 of arXiv:1909.08593: target 6, 256 of a horizon of 10,000."""
  step = jax.jit(
    functools.partial(
      policy_gradient.adaptive_kl_coefficient, target=6.0, horizon=10_000
    )
  )
  # KL, and the factor that it gives: 1 + error * 0.0256.
  sequence = [
    (6.0, 1.0),
    (6.6, 1.00256),
    (7.2, 1.00512),
    (60.0, 1.00512),
    (5.7, 0.99872),
    (4.8, 0.99488),
    (0.0, 0.99488),
    (-3.0, 0.99488),
  ]
  coefficient, expected = 0.2, 0.2
  for kl, factor in sequence:
    coefficient, expected = step(coefficient, kl, 256), expected * factor
    _close(coefficient, expected, rtol=1e-6)


# Advantages within groups.


def test_advantages_within_groups_are_loops_over_the_others():
  scores = np.random.default_rng(0).normal(size=(4, 5), scale=3) + 10
  scores[2] = 1.5
  alone, grouped, centred = np.zeros((3, 4, 5))
  for b, row in enumerate(scores):
    mean = sum(row) / 5
    deviation = (sum((x - mean) ** 2 for x in row) / 4) ** 0.5
    for k, score in enumerate(row):
      others = [x for j, x in enumerate(row) if j != k]
      alone[b, k] = score - sum(others) / len(others)
      grouped[b, k] = (score - mean) / (deviation + 1e-4)
      centred[b, k] = score - mean
  relative = policy_gradient.group_relative
  unscaled = functools.partial(relative, scale=False)
  _close(jax.jit(policy_gradient.leave_one_out)(scores), alone)
  _close(jax.jit(relative)(scores), grouped)
  _close(jax.jit(unscaled)(scores), centred)


# What all share.


def test_low_precision_inputs_give_float32():
  low = jnp.linspace(-2, 2, B * T).reshape(B, T).astype(jnp.bfloat16)
  high = low.astype(jnp.float32)
  functions = (
    *policy_gradient.kl_estimates.values(),
    lambda x, y: policy_gradient.token_rewards(
      x[:, 0], y, MASK, kl_coefficient=0.1
    ),
    lambda x, y: policy_gradient.generalized_advantages(
      x, y, MASK, discount=1.0, gae_lambda=0.9
    ),
    lambda x, y: policy_gradient.whiten(x, MASK),
    lambda x, y: policy_gradient.ppo_policy_loss(x, y, x, clip=0.2),
    lambda x, y: policy_gradient.ppo_value_loss(x, y, x, clip=0.2),
    lambda x, y: policy_gradient.leave_one_out(x),
    lambda x, y: policy_gradient.group_relative(y),
    lambda x, y: policy_gradient.explained_variance(x, y, MASK),
  )
  for fn in functions:
    for ours, expected in zip(
      jax.tree.leaves(fn(low, low[::-1])),
      jax.tree.leaves(fn(high, high[::-1])),
      strict=True,
    ):
      assert ours.dtype == jnp.float32
      np.testing.assert_array_equal(ours, expected)


def test_bad_input_is_named():
  x = jnp.zeros((B, T))
  advantages = policy_gradient.generalized_advantages
  with pytest.raises(ValueError, match=r'gae_lambda is 1\.5'):
    advantages(x, x, MASK, discount=1.0, gae_lambda=1.5)
  with pytest.raises(ValueError, match='discount is -1'):
    advantages(x, x, MASK, discount=-1, gae_lambda=1.0)
  with pytest.raises(ValueError, match=r'kl_coefficient is -0\.1'):
    policy_gradient.token_rewards(x[:, 0], x, MASK, kl_coefficient=-0.1)
  for loss in (policy_gradient.ppo_policy_loss, policy_gradient.ppo_value_loss):
    with pytest.raises(ValueError, match='clip is 0'):
      loss(x, x, x, clip=0)
  with pytest.raises(ValueError, match='horizon is 0'):
    policy_gradient.adaptive_kl_coefficient(0.1, 1.0, 1, target=1, horizon=0)
  for grouped in (
    policy_gradient.leave_one_out,
    policy_gradient.group_relative,
  ):
    with pytest.raises(ValueError, match=r'\[7, 1\]; expected .* K >= 2'):
      grouped(x[:, :1])
