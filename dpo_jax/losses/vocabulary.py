"""Softmax over a vocabulary that may be split over devices.

`axis` is the mesh axis over which the last dimension of the logits is split,
inside `jax.shard_map`; None where a device has all of it. Logits never move:
devices exchange one number a position.
"""

import jax
import jax.numpy as jnp

from dpo_jax import types


def logsumexp(logits: types.Array, axis: str | None = None) -> types.Array:
  """log sum_v exp(logits[..., v])."""
  if axis is None:
    return jax.nn.logsumexp(logits, axis=-1)
  top = jax.lax.stop_gradient(jnp.max(logits, axis=-1))
  top = jax.lax.pmax(top, axis)
  total = jnp.sum(jnp.exp(logits - top[..., None]), axis=-1)
  return jnp.log(jax.lax.psum(total, axis)) + top


def pick(
  logits: types.Array, token: types.Array, axis: str | None = None
) -> types.Array:
  """logits[..., token]."""
  if axis is None:
    return jnp.take_along_axis(logits, token[..., None], axis=-1)[..., 0]
  size = logits.shape[-1]
  local = token - jax.lax.axis_index(axis) * size
  mine = (local >= 0) & (local < size)
  at = jnp.clip(local, 0, size - 1)[..., None]
  found = jnp.take_along_axis(logits, at, axis=-1)[..., 0]
  return jax.lax.psum(jnp.where(mine, found, 0.0), axis)


def total(values: types.Array, axis: str | None = None) -> types.Array:
  """sum_v values[..., v]."""
  out = jnp.sum(values, axis=-1)
  return out if axis is None else jax.lax.psum(out, axis)
