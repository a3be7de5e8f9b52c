"""PPO's losses and their gradients against PyTorch, and at extremes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from dpo_jax.losses import policy_gradient


def _close(ours, expected):
  np.testing.assert_allclose(ours, expected, rtol=2e-5, atol=2e-6)


def _policy_loss(logps, old_logps, advantages, clip):
  """Eq. 7 of arXiv:1707.06347, negated, in PyTorch."""
  ratio = (logps - old_logps.detach()).exp()
  surrogate = ratio * advantages.detach()
  limited = ratio.clamp(1.0 - clip, 1.0 + clip) * advantages.detach()
  return -torch.minimum(surrogate, limited)


def _value_loss(values, old_values, returns, clip):
  error = (values - returns.detach()) ** 2
  if clip is None:
    return error / 2
  old_values = old_values.detach()
  near = old_values + (values - old_values).clamp(-clip, clip)
  return torch.maximum(error, (near - returns.detach()) ** 2) / 2


def _against_torch(ours, theirs, arrays, clip):
  """Compares losses and the gradients of a weighted sum of these."""
  weights = np.random.default_rng(9).normal(size=arrays[0].shape)
  tensors = [torch.tensor(x, requires_grad=True) for x in arrays]
  expected = theirs(*tensors, clip)
  (expected * torch.tensor(weights)).sum().backward()
  arrays = [jnp.float32(x) for x in arrays]
  losses = jax.jit(functools.partial(ours, clip=clip))(*arrays)
  _close(losses, expected.detach())

  def total(*arrays):
    return jnp.sum(ours(*arrays, clip=clip) * jnp.float32(weights))

  grads = jax.grad(total, argnums=(0, 1, 2))(*arrays)
  _close(grads[0], tensors[0].grad)
  for grad, tensor in zip(grads[1:], tensors[1:], strict=True):
    assert tensor.grad is None
    np.testing.assert_array_equal(grad, 0.0)


@pytest.mark.parametrize('clip', [0.1, 0.2, 0.5])
def test_policy_loss_is_pytorchs(clip):
  rng = np.random.default_rng(0)
  old = -np.exp(rng.normal(size=4000))
  logps, advantages = old + rng.normal(size=(2, 4000))
  # Both signs of advantage, below, inside and above the ratio's range.
  ratio = np.exp(logps - old)
  for sign in (advantages > 0, advantages < 0):
    for region in (ratio < 1 - clip, abs(ratio - 1) < clip, ratio > 1 + clip):
      assert (sign & region).sum() > 10
  _against_torch(
    policy_gradient.ppo_policy_loss,
    _policy_loss,
    (logps, old, advantages),
    clip,
  )


@pytest.mark.parametrize('clip', [0.1, 0.2, 1.0, None])
def test_value_loss_is_pytorchs(clip):
  rng = np.random.default_rng(0)
  old = rng.normal(size=4000)
  values, returns = old + rng.normal(size=(2, 4000))
  for side in (values > old + (clip or 0), values < old - (clip or 0)):
    for error in (returns > values, returns < values):
      assert (side & error).sum() > 10
  arrays = (values, old, returns)
  _against_torch(policy_gradient.ppo_value_loss, _value_loss, arrays, clip)


def test_clipped_ratios_have_no_gradient_where_it_would_help():
  def gradient(log_ratio, advantage):
    return jax.grad(policy_gradient.ppo_policy_loss)(
      log_ratio, 0.0, advantage, clip=0.2
    )

  assert gradient(0.3, 1.0) == 0 and gradient(-0.3, -1.0) == 0
  _close(gradient(0.3, -1.0), np.exp(0.3))
  _close(gradient(-0.3, 1.0), -np.exp(-0.3))
  _close(gradient(0.0, 2.0), -2.0)


def test_extreme_ratios_are_handled_as_in_pytorch():
  log_ratios = np.repeat([-1e4, -100.0, 0.0, 88.0, 100.0, 1e4], 3)
  advantages = np.tile([1.0, -1.0, 0.0], 6)
  loss, gradient = jax.vmap(
    jax.value_and_grad(lambda *x: policy_gradient.ppo_policy_loss(*x, clip=0.2))
  )(jnp.float32(log_ratios), jnp.zeros(18), jnp.float32(advantages))
  logps = torch.tensor(np.float32(log_ratios), requires_grad=True)
  expected = _policy_loss(
    logps, torch.zeros(18), torch.tensor(np.float32(advantages)), 0.2
  )
  expected.sum().backward()
  _close(loss, expected.detach())
  _close(gradient, logps.grad)
  # A ratio of 0 is harmless, one that overflows is not.
  assert np.isfinite(loss[:9]).all() and np.isfinite(gradient[:9]).all()
