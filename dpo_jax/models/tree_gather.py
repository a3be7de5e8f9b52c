"""Gathers trees from packed rows into blocks of equal length, and back.

A block (begin, end, n) holds tokens begin to end of the first n trees of each
row. Gathered tokens are ordered by block, then tree, then token; W is their
number.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax import types

Block = tuple[int, int, int]


class TreeGather(NamedTuple):
  """out[r, i] = x[r, index[r, i]] where valid[r, i], else 0."""

  index: types.Array
  valid: types.Array


def make_gathers(
  layout: types.Layout, blocks: tuple[Block, ...]
) -> tuple[TreeGather, TreeGather]:
  """(rows to blocks, blocks to rows).

  Blocks are consecutive from token 0 of each tree. Tokens beyond the last
  block, and padding, come back as zeros.
  """
  begins, ends, counts = (np.array(x, np.int32) for x in zip(*blocks))
  sizes = counts * (ends - begins)
  firsts = (np.cumsum(sizes) - sizes).astype(np.int32)

  def block_index(begin, end, n):
    offset = jnp.arange(begin, end)[None, None]
    valid = offset < layout.tree_length_RxT[:, :n, None]
    index = _positions(layout, begin, end, n)
    return merge_axes(index, 1), merge_axes(valid, 1)

  index, valid = zip(*(block_index(*block) for block in blocks))
  to_blocks = TreeGather(jnp.concatenate(index, 1), jnp.concatenate(valid, 1))

  tree, offset = tree_and_offset(layout)
  block = jnp.searchsorted(jnp.array(ends), offset, side='right')
  block = jnp.minimum(block, len(blocks) - 1)
  begin, end, first = (jnp.array(x)[block] for x in (begins, ends, firsts))
  index = first + tree * (end - begin) + offset - begin
  real = layout.segment_RxL > 0
  if ends[-1] < layout.profile[-1][0]:
    real &= offset < ends[-1]
  return to_blocks, TreeGather(jnp.where(real, index, 0), real)


def _positions(layout: types.Layout, begin: int, end: int, n: int):
  """i32[R, n, end - begin]: tokens begin to end of each row's first n trees."""
  if layout.paths is not None:
    return layout.paths.index_RxTxP[:, :n, begin:end]
  start_RxnxI = layout.tree_start_RxT[:, :n, None]
  last = layout.segment_RxL.shape[1] - 1
  return jnp.minimum(start_RxnxI + jnp.arange(begin, end)[None, None], last)


def tree_and_offset(layout: types.Layout):
  """A tree that holds each token of a row, and the token's number in it."""
  if layout.paths is not None:
    return jnp.divmod(layout.paths.home_RxL, layout.paths.index_RxTxP.shape[-1])
  tree = jnp.maximum(layout.segment_RxL - 1, 0)
  start = jnp.take_along_axis(layout.tree_start_RxT, tree, axis=1)
  return tree, jnp.arange(tree.shape[1])[None] - start


def merge_axes(x, axis: int):
  """Merges `axis` and the one after it."""
  return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])


def split_blocks(x, blocks, axis: int = 1):
  """A list of one array for each block, W split as [n, end - begin]."""
  sizes = [n * (end - begin) for begin, end, n in blocks]
  parts = jnp.split(x, np.cumsum(sizes)[:-1], axis=axis)
  before, behind = x.shape[:axis], x.shape[axis + 1 :]
  return [
    part.reshape(*before, n, end - begin, *behind)
    for part, (begin, end, n) in zip(parts, blocks)
  ]


def take(x_RxLx, index_RxI):
  return jax.vmap(lambda x, index: x[index])(x_RxLx, index_RxI)


@jax.custom_vjp
def gather(x, forward: TreeGather, inverse: TreeGather):
  """Gathers along axis 1; the gradient is gathered by `inverse`.

  Each token has one position on either side, if trees share none, so the
  inverse is the transpose. Autodiff would make it a scatter-add, which is slow.
  """
  shape = (*forward.valid.shape, *[1] * (x.ndim - 2))
  return jnp.where(forward.valid.reshape(shape), take(x, forward.index), 0)


def _gather_fwd(x, forward, inverse):
  return gather(x, forward, inverse), (forward, inverse)


def _gather_bwd(gathers, cotangent):
  forward, inverse = gathers
  return gather(cotangent, inverse, forward), None, None


gather.defvjp(_gather_fwd, _gather_bwd)
