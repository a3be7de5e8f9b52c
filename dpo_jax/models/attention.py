"""Attention over packed forests, from ids alone.

A backend is `prepare(layout) -> view`, run once per forward pass, and
`attend(q, k, v, view, scale) -> out`, run in every layer:

  dense  one [L, L] mask a row: the visibility rule, word for word.
  tree   queries and keys gathered per tree, queries in blocks that read only
         the keys up to their own end. Its cost follows the trees, not the row.

Rows never mix, so both run on rows sharded over devices without communication.
"""

from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from dpo_jax import types

# Finite, so that a row of scores without any visible key stays free of NaN.
MASKED = -1e30


def visible_RxLxL(layout: types.Layout):
  """bool[R, query, key]: the visibility rule of `types.Layout`."""
  segment, branch = layout.segment_RxL, layout.branch_RxL
  index = jnp.arange(segment.shape[1])
  same_tree = segment[:, :, None] == segment[:, None, :]
  not_later = index[None, :, None] >= index[None, None, :]
  key_branch, query_branch = branch[:, None, :], branch[:, :, None]
  on_path = (key_branch == 0) | (key_branch == query_branch)
  seen = same_tree & not_later & on_path & (segment[:, :, None] != 0)
  return seen | jnp.eye(len(index), dtype=bool)[None]


def _attend(q, k, v, visible, scale):
  """Softmax attention of grouped queries, float32 inside.

  q[..., C, H, d]; k, v[..., M, G, d]; visible[..., C, M] -> [..., C, H, d].
  """
  *_, heads, head_dim = q.shape
  groups = k.shape[-2]
  q = q.reshape(*q.shape[:-2], groups, heads // groups, head_dim)
  scores = jnp.einsum(
    '...cgqd,...mgd->...gqcm', q, k, preferred_element_type=jnp.float32
  )
  scores = jnp.where(visible[..., None, None, :, :], scores * scale, MASKED)
  probs = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
  out = jnp.einsum('...gqcm,...mgd->...cgqd', probs, v)
  return out.reshape(*out.shape[:-3], heads, head_dim)


def _attend_dense(q, k, v, visible_RxLxL, scale):
  return _attend(q, k, v, visible_RxLxL, scale)


class Move(NamedTuple):
  """A gather along the token axis: out[r, i] = x[r, index[r, i]] if valid."""

  index: types.Array
  valid: types.Array


@flax.struct.dataclass
class TreeView:
  """A layout as blocks of trees: how to get there, back, and who sees whom.

  Block j holds tokens begin to end of the first n trees; (begin, end, n) is
  `blocks[j]`. Gathered positions are ordered by block, tree and token.
  """

  to_blocks: Move
  to_row: Move
  visible: tuple[types.Array, ...]  # of block j: [R, n, end - begin, end]
  blocks: tuple[tuple[int, int, int], ...] = flax.struct.field(
    pytree_node=False
  )


def tree_view(layout: types.Layout) -> TreeView:
  """Indices and masks of `layout`'s trees, from ids and lengths."""
  ends, counts = zip(*layout.profile)
  begins = (0, *ends[:-1])
  blocks = tuple(zip(begins, ends, counts))
  sizes = [n * (end - begin) for begin, end, n in blocks]
  length = layout.segment_RxL.shape[1]
  start, size = layout.tree_start_RxT, layout.tree_length_RxT

  def places(begin, end, n):
    offset = jnp.arange(begin, end)[None, None]
    at = jnp.minimum(start[:, :n, None] + offset, length - 1)
    return _flat(at, 1), _flat(offset < size[:, :n, None], 1)

  index, valid = zip(*(places(*block) for block in blocks))
  to_blocks = Move(jnp.concatenate(index, 1), jnp.concatenate(valid, 1))

  real = layout.segment_RxL > 0
  tree = jnp.maximum(layout.segment_RxL - 1, 0)
  offset = jnp.arange(length)[None] - jnp.take_along_axis(start, tree, axis=1)
  block = jnp.searchsorted(jnp.array(ends), offset, side='right')
  block = jnp.minimum(block, len(ends) - 1)
  first = jnp.cumsum(jnp.array([0, *sizes[:-1]]))[block]
  begin, end = jnp.array(begins)[block], jnp.array(ends)[block]
  back = first + tree * (end - begin) + offset - begin
  to_row = Move(jnp.where(real, back, 0), real)

  branches = _split(_take(layout.branch_RxL, to_blocks.index), blocks)

  def seen(j):
    begin, end, n = blocks[j]
    keys = _up_to(branches, j, n)[:, :, None]
    queries = branches[j][..., None]
    place = jnp.arange(end)[None, None, None]
    causal = jnp.arange(begin, end)[None, None, :, None] >= place
    return causal & ((keys == 0) | (keys == queries))

  visible = tuple(seen(j) for j in range(len(blocks)))
  return TreeView(to_blocks, to_row, visible, blocks)


def _flat(x, axis: int):
  """Merges two axes from `axis` on."""
  return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])


def _split(x_RxWx, blocks):
  """Gathered positions as one [R, n, end - begin, ...] array a block."""
  out, at = [], 0
  for begin, end, n in blocks:
    part = x_RxWx[:, at : at + n * (end - begin)]
    out.append(part.reshape(part.shape[0], n, end - begin, *part.shape[2:]))
    at += n * (end - begin)
  return out


def _up_to(parts, j: int, n: int):
  """The first n trees from their start to the end of block j."""
  return jnp.concatenate([part[:, :n] for part in parts[: j + 1]], axis=2)


def _take(x_RxLx, index_RxI):
  return jax.vmap(lambda x, index: x[index])(x_RxLx, index_RxI)


@jax.custom_vjp
def move(x, there: Move, back: Move):
  """Gathers along axis 1; `back` undoes it, so it is also the transpose.

  Autodiff would turn the gather into a scatter-add, which is slow and, here,
  needless: every token lies in one place on either side.
  """
  shape = (*there.valid.shape, *[1] * (x.ndim - 2))
  return jnp.where(there.valid.reshape(shape), _take(x, there.index), 0)


def _move_fwd(x, there, back):
  return move(x, there, back), (there, back)


def _move_bwd(moves, cotangent):
  there, back = moves
  return move(cotangent, back, there), None, None


move.defvjp(_move_fwd, _move_bwd)


def _attend_tree(q, k, v, view: TreeView, scale):
  def parts(x):
    return _split(move(x, view.to_blocks, view.to_row), view.blocks)

  q, k, v = parts(q), parts(k), parts(v)
  out = []
  for j, (_, _, n) in enumerate(view.blocks):
    keys, values = _up_to(k, j, n), _up_to(v, j, n)
    part = _attend(q[j], keys, values, view.visible[j], scale)
    out.append(_flat(part, 1))
  return move(jnp.concatenate(out, axis=1), view.to_row, view.to_blocks)


class Backend(NamedTuple):
  prepare: types.Callable
  attend: types.Callable


BACKENDS = {
  'dense': Backend(visible_RxLxL, _attend_dense),
  'tree': Backend(tree_view, _attend_tree),
}
