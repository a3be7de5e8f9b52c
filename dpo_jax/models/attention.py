"""Attention over packed rows, masked by the ids of their layout.

A backend is `prepare(layout) -> view`, run once per forward pass, and
`attend(q, k, v, view, scale, softcap, window) -> out`, run in every layer:

  dense  One [L, L] mask per row: the visibility rule of `types.Layout` as it
         stands.
  tree   Queries and keys are gathered per tree; queries are processed in blocks
         that read only the keys up to the block's end. Its cost grows with the
         trees' lengths, not with the row's.

Rows are independent, so rows sharded over devices need no communication.
"""

from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from dpo_jax import types
from dpo_jax.models import layers, tree_gather

# Finite: the softmax of a query that sees no key must not be NaN.
MASKED = -1e30


class Window(NamedTuple):
  """A token sees only keys less than `size` positions back, if `applies`."""

  size: int
  applies: bool | types.Array


def visible_RxLxL(layout: types.Layout):
  """bool[R, query, key]: the visibility rule of `types.Layout`."""
  segment, branch = layout.segment_RxL, layout.branch_RxL
  index = jnp.arange(segment.shape[1])
  same_tree = segment[:, :, None] == segment[:, None, :]
  not_later = index[None, :, None] >= index[None, None, :]
  key_branch, query_branch = branch[:, None, :], branch[:, :, None]
  on_path = (key_branch == 0) | (key_branch == query_branch)
  seen = same_tree & not_later & on_path & (segment[:, :, None] != 0)
  if layout.paths is not None:
    seen &= _on_paths(layout)
  return seen | jnp.eye(len(index), dtype=bool)[None]


def _on_paths(layout: types.Layout):
  """bool[R, query, key]: the key is on the path to the query."""
  index_RxTxP = layout.paths.index_RxTxP
  tree_RxL, offset_RxL = tree_gather.tree_and_offset(layout)
  offset = jnp.arange(index_RxTxP.shape[-1])
  before_RxLxP = offset[None, None] <= offset_RxL[..., None]
  key_RxLxP = tree_gather.take(index_RxTxP, tree_RxL)
  rows, length, _ = key_RxLxP.shape
  row, query = jnp.ogrid[:rows, :length]
  seen = jnp.zeros((rows, length, length), bool)
  return seen.at[row[..., None], query[..., None], key_RxLxP].max(before_RxLxP)


def _near(seen, query_position, key_position, window: Window | None):
  """`seen[..., C, M]`, restricted to the window where it applies."""
  if window is None:
    return seen
  distance = query_position[..., :, None] - key_position[..., None, :]
  near = distance < window.size
  if window.applies is not True:
    near |= jnp.logical_not(window.applies)
  return seen & near


def _attend(q, k, v, visible, scale, softcap):
  """Softmax attention of grouped queries, float32 inside.

  q[R, H, n, C, d]; k, v[R, G, n, M, d]; visible[R, n, C, M] -> as q. Heads come
  first: XLA's CPU backend takes half the time for trees gathered like this, as
  its products want them.
  """
  rows, heads, *_ = q.shape
  groups = k.shape[1]
  q = q.reshape(rows, groups, heads // groups, *q.shape[2:])
  scores = jnp.einsum(
    'rgqncd,rgnmd->rgnqcm', q, k, preferred_element_type=jnp.float32
  )
  scores = layers.softcap(scores * scale, softcap)
  scores = jnp.where(visible[:, None, :, None], scores, MASKED)
  probs = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
  out = jnp.einsum('rgnqcm,rgnmd->rgqncd', probs, v)
  return out.reshape(rows, heads, *out.shape[3:])


def _dense_view(layout: types.Layout):
  return visible_RxLxL(layout), layout.position_RxL


def _attend_dense(q, k, v, view, scale, softcap=None, window=None):
  visible, position = view
  visible = _near(visible, position, position, window)
  q, k, v = (jnp.swapaxes(x, 1, 2)[:, :, None] for x in (q, k, v))
  out = _attend(q, k, v, visible[:, None], scale, softcap)
  return jnp.swapaxes(out[:, :, 0], 1, 2)


@flax.struct.dataclass
class TreeView:
  """Gathers of a layout's trees into blocks and back, and each block's mask.

  visible: for each block bool[R, n, end - begin, end], query by key.
  position: for each block [R, n, end - begin].
  """

  to_blocks: tree_gather.TreeGather
  to_rows: tree_gather.TreeGather
  visible: tuple[types.Array, ...]
  position: tuple[types.Array, ...]
  blocks: tuple[tree_gather.Block, ...] = flax.struct.field(pytree_node=False)


def tree_view(layout: types.Layout) -> TreeView:
  """The `TreeView` of a layout; its blocks are those of `layout.profile`."""
  ends, counts = zip(*layout.profile)
  blocks = tuple(zip((0, *ends[:-1]), ends, counts))
  to_blocks, to_rows = tree_gather.make_gathers(layout, blocks)
  branches, positions = (
    tree_gather.split_blocks(tree_gather.take(x, to_blocks.index), blocks)
    for x in (layout.branch_RxL, layout.position_RxL)
  )

  def seen(j):
    begin, end, n = blocks[j]
    keys = _up_to(branches, j, n, axis=1)[:, :, None]
    queries = branches[j][..., None]
    key_index = jnp.arange(end)[None, None, None]
    causal = jnp.arange(begin, end)[None, None, :, None] >= key_index
    return causal & ((keys == 0) | (keys == queries))

  visible = tuple(seen(j) for j in range(len(blocks)))
  return TreeView(to_blocks, to_rows, visible, tuple(positions), blocks)


def _up_to(parts, j: int, n: int, axis: int):
  """Tokens of the first n trees, from the trees' start to block j's end.

  axis: that of trees in the array of each block; the next is that of tokens.
  """
  first = [jax.lax.slice_in_dim(x, 0, n, axis=axis) for x in parts[: j + 1]]
  return jnp.concatenate(first, axis=axis + 1)


def _attend_tree(q, k, v, view: TreeView, scale, softcap=None, window=None):
  gather = jax.vmap(tree_gather.gather, (1, None, None), 1)  # Of each head.

  def parts(x):
    x = gather(jnp.swapaxes(x, 1, 2), view.to_blocks, view.to_rows)
    return tree_gather.split_blocks(x, view.blocks, axis=2)

  q, k, v = parts(q), parts(k), parts(v)
  out = []
  for j, (_, _, n) in enumerate(view.blocks):
    keys, values = _up_to(k, j, n, axis=2), _up_to(v, j, n, axis=2)
    visible = view.visible[j]
    if window is not None:
      key_position = _up_to(view.position, j, n, axis=1)
      visible = _near(visible, view.position[j], key_position, window)
    part = _attend(q[j], keys, values, visible, scale, softcap)
    out.append(tree_gather.merge_axes(part, 2))
  out = jnp.concatenate(out, axis=2)
  return jnp.swapaxes(gather(out, view.to_rows, view.to_blocks), 1, 2)


class Backend(NamedTuple):
  """attend(q, k, v, view, scale, softcap=None, window=None) -> out.

  q, out: [R, L, H, d]. k, v: [R, L, G, d]. The scores are
  `layers.softcap(q.k * scale, softcap)`. window: a `Window` or None.
  """

  prepare: types.Callable
  attend: types.Callable


BACKENDS = {
  'dense': Backend(_dense_view, _attend_dense),
  'tree': Backend(tree_view, _attend_tree),
}
