"""Packed rows to blocks of trees and back, by gathers alone.

A block is (begin, end, n): tokens begin to end of the first n trees of a row.
Gathered positions are ordered by block, tree and token.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax import types

Block = tuple[int, int, int]


class Move(NamedTuple):
  """A gather along the token axis: out[r, i] = x[r, index[r, i]] if valid."""

  index: types.Array
  valid: types.Array


def moves(layout: types.Layout, blocks: tuple[Block, ...]) -> tuple[Move, Move]:
  """To the blocks, and back to the rows.

  Blocks follow one another from token 0 on; what lies behind the last, and
  padding, comes back as zeros.
  """
  begins, ends, counts = (np.array(x, np.int32) for x in zip(*blocks))
  sizes = counts * (ends - begins)
  firsts = (np.cumsum(sizes) - sizes).astype(np.int32)
  length = layout.segment_RxL.shape[1]
  start, size = layout.tree_start_RxT, layout.tree_length_RxT

  def places(begin, end, n):
    offset = jnp.arange(begin, end)[None, None]
    at = jnp.minimum(start[:, :n, None] + offset, length - 1)
    return flat(at, 1), flat(offset < size[:, :n, None], 1)

  index, valid = zip(*(places(*block) for block in blocks))
  to_blocks = Move(jnp.concatenate(index, 1), jnp.concatenate(valid, 1))

  tree = jnp.maximum(layout.segment_RxL - 1, 0)
  offset = jnp.arange(length)[None] - jnp.take_along_axis(start, tree, axis=1)
  block = jnp.searchsorted(jnp.array(ends), offset, side='right')
  block = jnp.minimum(block, len(blocks) - 1)
  begin, end, first = (jnp.array(x)[block] for x in (begins, ends, firsts))
  back = first + tree * (end - begin) + offset - begin
  real = layout.segment_RxL > 0
  if ends[-1] < layout.profile[-1][0]:
    real &= offset < ends[-1]
  return to_blocks, Move(jnp.where(real, back, 0), real)


def flat(x, axis: int):
  """Merges two axes from `axis` on."""
  return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])


def split(x_RxWx, blocks):
  """Gathered positions as one [R, n, end - begin, ...] array a block."""
  out, at = [], 0
  for begin, end, n in blocks:
    part = x_RxWx[:, at : at + n * (end - begin)]
    out.append(part.reshape(part.shape[0], n, end - begin, *part.shape[2:]))
    at += n * (end - begin)
  return out


def take(x_RxLx, index_RxI):
  return jax.vmap(lambda x, index: x[index])(x_RxLx, index_RxI)


@jax.custom_vjp
def move(x, there: Move, back: Move):
  """Gathers along axis 1; `back` undoes it, so it is also the transpose.

  Autodiff would turn the gather into a scatter-add, which is slow and, here,
  needless: every token lies in one place on either side.
  """
  shape = (*there.valid.shape, *[1] * (x.ndim - 2))
  return jnp.where(there.valid.reshape(shape), take(x, there.index), 0)


def _move_fwd(x, there, back):
  return move(x, there, back), (there, back)


def _move_bwd(moves, cotangent):
  there, back = moves
  return move(cotangent, back, there), None, None


move.defvjp(_move_fwd, _move_bwd)
