"""Heads that multiply with a kernel, which may come in blocks."""

import jax.numpy as jnp

from dpo_jax import types


def head(kernel_DxV, blocks: int | None = None) -> types.Head:
  """In blocks of equal size, the last one filled up with zeros."""
  if blocks is None:
    return types.Head.whole(lambda h: h @ kernel_DxV)
  width, vocab = kernel_DxV.shape
  size = -(-vocab // blocks)
  padded = jnp.pad(kernel_DxV, [(0, 0), (0, blocks * size - vocab)])
  starts_B = jnp.arange(blocks) * size
  return types.Head(
    open=lambda kernel_DxU: lambda h: h @ kernel_DxU,
    blocks=padded.reshape(width, blocks, size).swapaxes(0, 1),
    spans_Bx2=jnp.stack([starts_B, jnp.minimum(starts_B + size, vocab)], 1),
    padded=blocks * size > vocab,
  )
