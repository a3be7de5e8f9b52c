"""Packs prompts of unequal length into rows of few distinct shapes."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dpo_jax import types

# Attention blocks of a prompt: minimum length, maximum number.
BLOCK, MAX_BLOCKS = 128, 8


class PackedPrompts(NamedTuple):
  """Prompts as the trees of R rows, B trees in all, ordered by row.

  index_B: the prompt that tree b holds; -1 for a tree that only fills its row.
  first_B: the number, among its prompt's samples, of the first of the `samples`
  samples that tree b yields.
  """

  tokens_RxL: np.ndarray
  layout: types.Layout
  index_B: np.ndarray
  first_B: np.ndarray
  samples: int


def capacity(size: int, *, parts: int = 2, least: int = 16) -> int:
  """`size` rounded up to one of `parts` steps per power of two."""
  top = max(least, 1 << (size - 1).bit_length())
  step = max(1, top // (2 * parts))
  return max(least, -(-size // step) * step)


def pack(
  prompts: Sequence[Sequence[int]], *, num_samples: int = 1, rows: int = 1
) -> PackedPrompts:
  """Packs prompts into rows of equally many trees.

  With fewer prompts than rows, or a few more, a prompt may be copied to several
  trees, which divide its `num_samples` among them.
  """
  copies = _copies(len(prompts), num_samples, rows)
  samples = num_samples // copies
  size_B = np.repeat([len(p) for p in prompts], copies)
  order_B = np.argsort(-size_B, kind='stable')
  fill = np.full(-len(order_B) % rows, -1)
  tree_RxT = np.concatenate([order_B, fill]).reshape(-1, rows).T
  # Every other column is reversed, so that rows get about equally many tokens.
  tree_RxT[:, 1::2] = tree_RxT[::-1, 1::2]
  real_RxT = tree_RxT >= 0
  index_RxT = np.where(real_RxT, tree_RxT // copies, -1)
  length_RxT = np.where(real_RxT, size_B[tree_RxT], 1)
  start_RxT = np.cumsum(length_RxT, axis=1) - length_RxT
  # Finer steps than elsewhere: a padded position costs as much as a token.
  length = capacity(int(length_RxT.sum(1).max()), parts=8)
  tokens, segment, position = np.zeros((3, rows, length), np.int32)
  for (r, t), i in np.ndenumerate(index_RxT):
    begin, n = start_RxT[r, t], length_RxT[r, t]
    tokens[r, begin : begin + n] = prompts[i] if i >= 0 else 0
    segment[r, begin : begin + n] = t + 1
    position[r, begin : begin + n] = np.arange(n)
  layout = types.Layout(
    segment_RxL=segment,
    branch_RxL=np.zeros((rows, length), np.int32),
    position_RxL=position,
    tree_start_RxT=start_RxT.astype(np.int32),
    tree_length_RxT=length_RxT.astype(np.int32),
    shared=False,
    profile=_profile(length_RxT),
  )
  first_RxT = np.where(real_RxT, tree_RxT % copies * samples, 0)
  index_B, first_B = (
    x.reshape(-1).astype(np.int32) for x in (index_RxT, first_RxT)
  )
  return PackedPrompts(tokens, layout, index_B, first_B, samples)


def unpack(packed: PackedPrompts, x_BxSx: np.ndarray) -> np.ndarray:
  """An array by trees and their samples, as [prompts, num_samples, ...]."""
  order = np.lexsort((packed.first_B, packed.index_B))
  order = order[packed.index_B[order] >= 0]
  return x_BxSx[order].reshape(packed.index_B.max() + 1, -1, *x_BxSx.shape[2:])


def _copies(num_prompts: int, num_samples: int, rows: int) -> int:
  """The number of trees per prompt that gives rows the fewest sequences."""
  copies = range(1, min(num_samples, rows) + 1)
  return min(
    (c for c in copies if num_samples % c == 0),
    key=lambda c: -(-num_prompts * c // rows) * (num_samples // c),
  )


def _profile(length_RxT: np.ndarray) -> tuple[tuple[int, int], ...]:
  longest = capacity(int(length_RxT.max()))
  block = max(BLOCK, longest // MAX_BLOCKS)
  blocks = []
  for begin in range(0, longest, block):
    reach = int((length_RxT > begin).sum(axis=1).max())
    count = min(1 << (max(reach, 1) - 1).bit_length(), length_RxT.shape[1])
    blocks.append((min(begin + block, longest), count))
  return tuple(blocks)
