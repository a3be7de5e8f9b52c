"""Prompts of unequal length as one packed row, in few shapes."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dpo_jax import types

# Attention blocks of a prompt: at least this long, at most this many.
BLOCK, MAX_BLOCKS = 128, 8


class Packed(NamedTuple):
  """`index_B`: which of the given prompts tree b is; longest first."""

  tokens_1xL: np.ndarray
  layout: types.Layout
  index_B: np.ndarray


def capacity(size: int, *, parts: int = 2, least: int = 16) -> int:
  """`size` rounded up to a ladder of `parts` steps to each power of two."""
  top = max(least, 1 << (size - 1).bit_length())
  step = max(1, top // (2 * parts))
  return max(least, -(-size // step) * step)


def pack(prompts: Sequence[Sequence[int]]) -> Packed:
  """One row of all prompts; their number, capacities and blocks shape it."""
  sizes = np.array([len(p) for p in prompts])
  index_B = np.argsort(-sizes, kind='stable')
  length_B = sizes[index_B]
  start_B = np.cumsum(length_B) - length_B
  total = int(length_B.sum())
  # Every padded position costs a token's compute: finer steps than elsewhere.
  row = capacity(total, parts=8)
  tokens, segment, position = np.zeros((3, row), np.int32)
  tokens[:total] = np.concatenate([prompts[i] for i in index_B])
  segment[:total] = np.repeat(np.arange(len(prompts)) + 1, length_B)
  position[:total] = np.arange(total) - np.repeat(start_B, length_B)
  layout = types.Layout(
    segment_RxL=segment[None],
    branch_RxL=np.zeros((1, row), np.int32),
    position_RxL=position[None],
    tree_start_RxT=start_B[None].astype(np.int32),
    tree_length_RxT=length_B[None].astype(np.int32),
    shared=False,
    profile=_profile(length_B),
  )
  return Packed(tokens[None], layout, index_B)


def _profile(length_B: np.ndarray) -> tuple[tuple[int, int], ...]:
  longest = capacity(int(length_B[0]))
  block = max(BLOCK, longest // MAX_BLOCKS)
  blocks = []
  for begin in range(0, longest, block):
    reach = int((length_B > begin).sum())
    count = min(1 << (max(reach, 1) - 1).bit_length(), len(length_B))
    blocks.append((min(begin + block, longest), count))
  return tuple(blocks)
