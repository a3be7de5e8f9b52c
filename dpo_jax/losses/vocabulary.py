"""Sums over a vocabulary whose logits are computed block by block.

Devices exchange no logits: each block is reduced to one number a position, and
these are combined over blocks and over the devices of a mesh axis.
"""

import jax
import jax.numpy as jnp

from dpo_jax import types

# The logit of padding; finite, so that its double and differences are finite.
PADDING_LOGIT = -1e30


def mask(logits_xU: types.Array, span: types.Array) -> types.Array:
  """The logits of a block, `PADDING_LOGIT` beyond its span of tokens."""
  real_U = jnp.arange(logits_xU.shape[-1]) < span[1] - span[0]
  real_xU = jnp.broadcast_to(real_U, logits_xU.shape)
  return jnp.where(real_xU, logits_xU, PADDING_LOGIT)


def pick(
  logits_xU: types.Array, token: types.Array, span: types.Array | None
) -> types.Array:
  """logits[..., token] where the block contains the token, otherwise 0.

  span: the block's first token and the one after its last; None for all.
  """
  if span is None:
    return jnp.take_along_axis(logits_xU, token[..., None], axis=-1)[..., 0]
  mine = (token >= span[0]) & (token < span[1])
  at = jnp.where(mine, token - span[0], 0)[..., None]
  found = jnp.take_along_axis(logits_xU, at, axis=-1)[..., 0]
  return jnp.where(mine, found, 0.0)


def join_logsumexp(parts_Bx: types.Array, axis: str | None) -> types.Array:
  """The logsumexp over all blocks and devices of `axis`, from that of each."""
  if axis is None:
    return jax.nn.logsumexp(parts_Bx, axis=0)
  top = jax.lax.pmax(jax.lax.stop_gradient(parts_Bx.max(axis=0)), axis)
  return jnp.log(join_sum(jnp.exp(parts_Bx - top[None]), axis)) + top


def join_sum(parts_Bx: types.Array, axis: str | None) -> types.Array:
  """The sum over all blocks and all devices of `axis`."""
  total = parts_Bx.sum(axis=0)
  return total if axis is None else jax.lax.psum(total, axis)
