"""Sums over a vocabulary of which one block's logits are there at a time.

Logits never move: what is known of each block, a number a position, is put
together over blocks and over the devices of a mesh axis that have others.
"""

import jax
import jax.numpy as jnp

from dpo_jax import types

# The logit of padding; finite, so that twice and differences of it are.
NOTHING = -1e30


def mask(logits_xU: types.Array, span: types.Array) -> types.Array:
  """The logits of a block, `NOTHING` beyond its span of tokens."""
  real_U = jnp.arange(logits_xU.shape[-1]) < span[1] - span[0]
  real_xU = jnp.broadcast_to(real_U, logits_xU.shape)
  return jnp.where(real_xU, logits_xU, NOTHING)


def pick(
  logits_xU: types.Array, token: types.Array, span: types.Array | None
) -> types.Array:
  """logits[..., token] where the token is of the block, otherwise 0.

  span: the block's first token and the one after its last; None for all.
  """
  if span is None:
    return jnp.take_along_axis(logits_xU, token[..., None], axis=-1)[..., 0]
  mine = (token >= span[0]) & (token < span[1])
  at = jnp.where(mine, token - span[0], 0)[..., None]
  found = jnp.take_along_axis(logits_xU, at, axis=-1)[..., 0]
  return jnp.where(mine, found, 0.0)


def join_logsumexp(parts_Bx: types.Array, axis: str | None) -> types.Array:
  """log sum exp over all blocks, of those of each, on all devices of `axis`."""
  if axis is None:
    return jax.nn.logsumexp(parts_Bx, axis=0)
  top = jax.lax.pmax(jax.lax.stop_gradient(parts_Bx.max(axis=0)), axis)
  return jnp.log(join_sum(jnp.exp(parts_Bx - top[None]), axis)) + top


def join_sum(parts_Bx: types.Array, axis: str | None) -> types.Array:
  """The sum over all blocks, on all devices of `axis`."""
  total = parts_Bx.sum(axis=0)
  return total if axis is None else jax.lax.psum(total, axis)
