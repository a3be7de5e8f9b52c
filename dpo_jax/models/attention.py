"""Attention over packed forests, from ids alone.

A backend is `prepare(layout) -> view`, run once per forward pass, and
`attend(q, k, v, view, scale, softcap, window) -> out`, run in every layer:

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
from dpo_jax.models import layers, moves

# Finite, so that a row of scores without any visible key stays free of NaN.
MASKED = -1e30


class Window(NamedTuple):
  """A token sees keys less than `size` positions before it, if `applies`."""

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
  return seen | jnp.eye(len(index), dtype=bool)[None]


def _near(seen, query_position, key_position, window: Window | None):
  """`seen[..., C, M]`, and near enough where `window` applies."""
  if window is None:
    return seen
  distance = query_position[..., :, None] - key_position[..., None, :]
  near = distance < window.size
  if window.applies is not True:
    near |= jnp.logical_not(window.applies)
  return seen & near


def _attend(q, k, v, visible, scale, softcap):
  """Softmax attention of grouped queries, float32 inside.

  q[..., C, H, d]; k, v[..., M, G, d]; visible[..., C, M] -> [..., C, H, d].
  """
  *_, heads, head_dim = q.shape
  groups = k.shape[-2]
  q = q.reshape(*q.shape[:-2], groups, heads // groups, head_dim)
  scores = jnp.einsum(
    '...cgqd,...mgd->...gqcm', q, k, preferred_element_type=jnp.float32
  )
  scores = layers.softcap(scores * scale, softcap)
  scores = jnp.where(visible[..., None, None, :, :], scores, MASKED)
  probs = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
  out = jnp.einsum('...gqcm,...mgd->...cgqd', probs, v)
  return out.reshape(*out.shape[:-3], heads, head_dim)


def _dense_view(layout: types.Layout):
  return visible_RxLxL(layout), layout.position_RxL


def _attend_dense(q, k, v, view, scale, softcap=None, window=None):
  visible, position = view
  visible = _near(visible, position, position, window)
  return _attend(q, k, v, visible, scale, softcap)


@flax.struct.dataclass
class TreeView:
  """A layout as blocks of trees: how to get there, back, and who sees whom.

  visible: of block j, [R, n, end - begin, end]; position: [R, n, end - begin].
  """

  to_blocks: moves.Move
  to_row: moves.Move
  visible: tuple[types.Array, ...]
  position: tuple[types.Array, ...]
  blocks: tuple[moves.Block, ...] = flax.struct.field(pytree_node=False)


def tree_view(layout: types.Layout) -> TreeView:
  """Indices and masks of `layout`'s trees, from ids and lengths."""
  ends, counts = zip(*layout.profile)
  blocks = tuple(zip((0, *ends[:-1]), ends, counts))
  to_blocks, to_row = moves.moves(layout, blocks)
  branches, positions = (
    moves.split(moves.take(x, to_blocks.index), blocks)
    for x in (layout.branch_RxL, layout.position_RxL)
  )

  def seen(j):
    begin, end, n = blocks[j]
    keys = _up_to(branches, j, n)[:, :, None]
    queries = branches[j][..., None]
    place = jnp.arange(end)[None, None, None]
    causal = jnp.arange(begin, end)[None, None, :, None] >= place
    return causal & ((keys == 0) | (keys == queries))

  visible = tuple(seen(j) for j in range(len(blocks)))
  return TreeView(to_blocks, to_row, visible, tuple(positions), blocks)


def _up_to(parts, j: int, n: int):
  """The first n trees from their start to the end of block j."""
  return jnp.concatenate([part[:, :n] for part in parts[: j + 1]], axis=2)


def _attend_tree(q, k, v, view: TreeView, scale, softcap=None, window=None):
  def parts(x):
    x = moves.move(x, view.to_blocks, view.to_row)
    return moves.split(x, view.blocks)

  q, k, v = parts(q), parts(k), parts(v)
  out = []
  for j, (_, _, n) in enumerate(view.blocks):
    keys, values = _up_to(k, j, n), _up_to(v, j, n)
    visible = view.visible[j]
    if window is not None:
      at = _up_to(view.position, j, n)
      visible = _near(visible, view.position[j], at, window)
    part = _attend(q[j], keys, values, visible, scale, softcap)
    out.append(moves.flat(part, 1))
  return moves.move(jnp.concatenate(out, axis=1), view.to_row, view.to_blocks)


class Backend(NamedTuple):
  """attend(q, k, v, view, scale, softcap=None, window=None) -> out.

  q and out [R, L, H, d], k and v [R, L, G, d]; scores q.k * scale go through
  `layers.softcap`; `window` is a `Window` or None.
  """

  prepare: types.Callable
  attend: types.Callable


BACKENDS = {
  'dense': Backend(_dense_view, _attend_dense),
  'tree': Backend(tree_view, _attend_tree),
}
