"""Attention over packed forests, from ids alone.

A backend is `prepare(layout) -> view`, run once per forward pass, and
`attend(q, k, v, view, scale) -> out`, run in every layer:

  dense  one [L, L] mask a row: the visibility rule, word for word.
  tree   queries and keys gathered per tree, queries in chunks that read only
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


class _Move(NamedTuple):
  """A gather along the token axis: out[r, i] = x[r, index[r, i]] if valid."""

  index: types.Array
  valid: types.Array


@flax.struct.dataclass
class TreeView:
  """A layout as per-tree blocks: how to get there, back, and who sees whom."""

  to_trees: _Move  # index_Rx(T*M)
  to_row: _Move  # index_RxL
  visible: tuple[types.Array, ...]  # per chunk j: [R, profile[j], C, (j+1)*C]
  profile: tuple[int, ...] = flax.struct.field(pytree_node=False)
  chunk: int = flax.struct.field(pytree_node=False)


def tree_view(layout: types.Layout) -> TreeView:
  """Indices and masks of `layout`'s trees, from ids and lengths."""
  profile, chunk = layout.profile, layout.chunk
  rows, length = layout.segment_RxL.shape
  trees, size = profile[0], len(profile) * chunk
  start = layout.tree_start_RxT[:, :trees]
  offset_M = jnp.arange(size)[None, None]
  index = jnp.minimum(start[..., None] + offset_M, length - 1)
  valid = offset_M < layout.tree_length_RxT[:, :trees, None]
  to_trees = _Move(index.reshape(rows, -1), valid.reshape(rows, -1))
  tree = jnp.maximum(layout.segment_RxL - 1, 0)
  offset = jnp.arange(length)[None] - jnp.take_along_axis(start, tree, axis=1)
  real = layout.segment_RxL > 0
  to_row = _Move(jnp.where(real, tree * size + offset, 0), real)
  branch = _take(layout.branch_RxL, to_trees.index).reshape(rows, trees, size)

  def seen(j, trees):
    begin, end = j * chunk, (j + 1) * chunk
    keys, queries = branch[:, :trees, None, :end], branch[:, :trees, begin:end]
    offsets = offset_M[..., None, :end]
    causal = offset_M[..., begin:end, None] >= offsets
    return causal & ((keys == 0) | (keys == queries[..., None]))

  visible = tuple(seen(j, n) for j, n in enumerate(profile))
  return TreeView(to_trees, to_row, visible, profile, chunk)


def _take(x_RxLx, index_RxI):
  return jax.vmap(lambda x, index: x[index])(x_RxLx, index_RxI)


@jax.custom_vjp
def move(x, there: _Move, back: _Move):
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
  rows, _, heads, head_dim = q.shape
  trees, chunk = view.profile[0], view.chunk

  def blocks(x):
    moved = move(x, view.to_trees, view.to_row)
    return moved.reshape(rows, trees, -1, *x.shape[2:])

  q, k, v = blocks(q), blocks(k), blocks(v)
  out = []
  for j, (n, visible) in enumerate(zip(view.profile, view.visible)):
    begin, end = j * chunk, (j + 1) * chunk
    part = _attend(
      q[:, :n, begin:end], k[:, :n, :end], v[:, :n, :end], visible, scale
    )
    out.append(jnp.pad(part, [(0, 0), (0, trees - n), *[(0, 0)] * 3]))
  out = jnp.concatenate(out, axis=2).reshape(rows, -1, heads, head_dim)
  return move(out, view.to_row, view.to_trees)


class Backend(NamedTuple):
  prepare: types.Callable
  attend: types.Callable


BACKENDS = {
  'dense': Backend(visible_RxLxL, _attend_dense),
  'tree': Backend(tree_view, _attend_tree),
}
