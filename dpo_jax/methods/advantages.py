"""Advantages of sampled tokens, from a value model or the prompt's group."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from dpo_jax import types
from dpo_jax.losses import inputs
from dpo_jax.losses import policy_gradient as pg


class Advantage(NamedTuple):
  """What a token's log-probability is multiplied with.

  of(rewards_NxT, values_NxT, mask_NxT, K) -> (advantages, returns), f32[N, T].
  values_NxT and returns are None without a value model, whose loss has the
  weight value_coefficient (None: there is none) and the clip value_clip.
  """

  of: Callable[..., tuple[types.Array, types.Array | None]]
  value_coefficient: float | None = None
  value_clip: float | None = None


def gae(
  *,
  discount: float = 1.0,
  gae_lambda: float = 0.95,
  whiten: bool = True,
  value_coefficient: float = 0.1,
  value_clip: float | None = 0.2,
) -> Advantage:
  """Eq. 16, arXiv:1506.02438, from a value model.

  whiten: to mean 0 and variance 1 over all tokens of a collection. value_clip:
  of a value's change; None: no clip. The value loss has a factor 1/2 besides
  value_coefficient.
  """
  inputs.check_positive(value_coefficient=value_coefficient)
  inputs.check_least_0(discount=discount, gae_lambda=gae_lambda)
  inputs.check_most_1(discount=discount, gae_lambda=gae_lambda)
  if value_clip is not None:
    inputs.check_positive(value_clip=value_clip)

  def of(rewards_NxT, values_NxT, mask_NxT, num_samples):
    del num_samples
    advantages, returns = pg.generalized_advantages(
      rewards_NxT,
      values_NxT,
      mask_NxT,
      discount=discount,
      gae_lambda=gae_lambda,
    )
    return (pg.whiten(advantages, mask_NxT) if whiten else advantages), returns

  return Advantage(of, value_coefficient, value_clip)


def leave_one_out(*, whiten: bool = False) -> Advantage:
  """RLOO: the reward of a completion less the mean of its prompt's others."""
  return Advantage(_by_completion(pg.leave_one_out, whiten))


def group_relative(*, scale: bool = True) -> Advantage:
  """GRPO: less the prompt's mean; scale: over its standard deviation."""
  fn = functools.partial(pg.group_relative, scale=scale)
  return Advantage(_by_completion(fn, False))


ADVANTAGES: dict[str, Callable[..., Advantage]] = {
  'gae': gae,
  'leave_one_out': leave_one_out,
  'group_relative': group_relative,
}


def _by_completion(fn: Callable, whiten: bool) -> Callable:
  """`Advantage.of` from fn(f32[B, K] rewards of completions) -> f32[B, K]."""

  def of(rewards_NxT, values_NxT, mask_NxT, num_samples):
    del values_NxT
    rewards_BxK = rewards_NxT.sum(1).reshape(-1, num_samples)
    advantages_N = fn(rewards_BxK).reshape(-1)
    advantages = jnp.where(mask_NxT, advantages_N[:, None], 0.0)
    return (pg.whiten(advantages, mask_NxT) if whiten else advantages), None

  return of
