"""f-divergences that can keep a policy near its reference, arXiv:2309.16240.

With E[f(pi / pi_ref)] instead of the reverse KL, the reward that a policy
implies is beta f'(u) up to a constant, u = pi / pi_ref. In an objective of
differences of log-ratios, the scores f'(u) then replace the log-ratios log u.
Each function takes log u and returns f'(u) - f'(1) in float32.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from dpo_jax import types
from dpo_jax.losses import inputs

# Exponentials of larger numbers are continued by their tangent.
_LARGEST_EXPONENT = 30.0


def reverse_kl(log_ratio: types.Array) -> types.Array:
  """f = u log u, f' = log u + 1: DPO itself."""
  return inputs.float32(log_ratio)


def forward_kl(log_ratio: types.Array) -> types.Array:
  """f = -log u, f' = -1 / u: falls exponentially as u goes to 0.

  Below log u = -30 it is continued by its tangent, so that value and gradient
  stay finite; TRL's overflows below log u = -88.
  """
  return -_expm1(-inputs.float32(log_ratio))


def jensen_shannon(log_ratio: types.Array) -> types.Array:
  """f = u log u - (u + 1) log((u + 1) / 2), f' = log(2 u / (1 + u))."""
  return jnp.log(2.0) + jax.nn.log_sigmoid(inputs.float32(log_ratio))


def alpha(log_ratio: types.Array, *, alpha: float = 0.5) -> types.Array:
  """The alpha-divergence, f' = (1 - u^-alpha) / alpha, 0 < alpha <= 1.

  f = (u^(1 - alpha) - (1 - alpha) u - alpha) / (alpha (alpha - 1)); alpha to 0
  is reverse_kl, alpha = 1 forward_kl. Below log u = -30 / alpha it is
  continued by its tangent. TRL's coefficient is 1 - alpha, and there the
  gradient is 0 below log u = -80 / alpha.
  """
  inputs.check_positive(alpha=alpha)
  inputs.check_most_1(alpha=alpha)
  score = -_expm1(-alpha * inputs.float32(log_ratio)) / alpha
  return inputs.float32(score)


def _expm1(x):
  """exp(x) - 1; for x > 30 its tangent at 30."""
  beyond = x > _LARGEST_EXPONENT
  at_30 = math.exp(_LARGEST_EXPONENT)
  tangent = at_30 * (1 + x - _LARGEST_EXPONENT) - 1
  return jnp.where(beyond, tangent, jnp.expm1(jnp.where(beyond, 0.0, x)))


DIVERGENCES: dict[str, Callable[..., types.Array]] = {
  'reverse_kl': reverse_kl,
  'forward_kl': forward_kl,
  'jensen_shannon': jensen_shannon,
  'alpha': alpha,
}
