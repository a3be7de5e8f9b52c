"""Packs prompts into rows of few distinct shapes, common prefixes once.

The distinct prefixes of a row's prompts form a tree of tokens. A row holds each
of its tokens once, so a prefix that prompts share, such as a system prompt, is
computed once.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dpo_jax import types

# Attention blocks of a prompt: minimum length, maximum number.
BLOCK, MAX_BLOCKS = 128, 8
# Tokens that the prompts of a row may have together, unless it holds only one.
ROW_TOKENS = 2048


class Share(NamedTuple):
  """Some of a prompt's samples: `prompt` is its number, `first` the first."""

  prompt: int
  first: int


class PackedPrompts(NamedTuple):
  """T shares in each of R rows; B = R * T, ordered by row.

  Tree t of row r of the layout is the prompt of share t.
  index_B: the prompt of each share; -1 for one that only fills its row.
  first_B: the number, among its prompt's samples, of its first sample.
  """

  tokens_RxL: np.ndarray
  layout: types.Layout
  index_B: np.ndarray
  first_B: np.ndarray


def capacity(size: int, *, parts: int = 2, least: int = 16) -> int:
  """`size` rounded up to one of `parts` steps per power of two."""
  top = max(least, 1 << (size - 1).bit_length())
  step = max(1, top // (2 * parts))
  return max(least, -(-size // step) * step)


def shares(
  prompts: Sequence[Sequence[int]], *, num_samples: int = 1, rows: int = 1
) -> tuple[list[Share], int]:
  """All samples of all prompts, and how many belong to a share.

  Longest prompts come first. With fewer prompts than rows, or a few more, a
  prompt may have several shares.
  """
  count = _shares_of_a_prompt(len(prompts), num_samples, rows)
  samples = num_samples // count
  order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
  firsts = range(0, num_samples, samples)
  return [Share(i, first) for i in order for first in firsts], samples


def _shares_of_a_prompt(num_prompts: int, num_samples: int, rows: int) -> int:
  """The number that gives rows the fewest sequences."""
  counts = range(1, min(num_samples, rows) + 1)
  return min(
    (c for c in counts if num_samples % c == 0),
    key=lambda c: -(-num_prompts * c // rows) * (num_samples // c),
  )


def most_in_a_row(longest: int) -> int:
  """How many prompts of up to `longest` tokens are packed into a row."""
  return 1 << max(0, (ROW_TOKENS // capacity(longest)).bit_length() - 1)


def num_trees(row_shares: Sequence[Sequence[Share]]) -> int:
  """T of the rows that `pack` makes of these shares: one of few numbers."""
  most = max(map(len, row_shares))
  return next(n for n in (1, 4, 16, 1 << (most - 1).bit_length()) if n >= most)


def pack(
  prompts: Sequence[Sequence[int]], row_shares: Sequence[Sequence[Share]]
) -> PackedPrompts:
  """Packs the prompts of each row's shares, of which there are some."""
  trees = num_trees(row_shares)
  used = [s.prompt for row in row_shares for s in row]
  longest = capacity(max(len(prompts[i]) for i in used))
  shape = len(row_shares), trees
  index = np.full(shape, -1, np.int32)
  first, path_length = np.zeros(shape, np.int32), np.ones(shape, np.int32)
  path = np.zeros((*shape, longest), np.int32)
  nodes = [_Prefixes() for _ in row_shares]
  for r, row in enumerate(row_shares):
    for t, share in enumerate(row):
      prompt = prompts[share.prompt]
      index[r, t], first[r, t] = share
      path_length[r, t] = len(prompt)
      path[r, t, : len(prompt)] = nodes[r].add(prompt, home=t * longest)
  most_tokens = max(len(row.tokens) for row in nodes)
  length = capacity(most_tokens, parts=4 if trees == 1 else 2)
  tokens, home, segment = np.zeros((3, len(nodes), length), np.int32)
  for r, row in enumerate(nodes):
    size = len(row.tokens)
    tokens[r, :size], home[r, :size] = row.tokens, row.homes
    segment[r, :size] = 1
  block = max(BLOCK, longest // MAX_BLOCKS)
  layout = types.Layout(
    segment_RxL=segment,
    branch_RxL=np.zeros_like(segment),
    position_RxL=home % longest,
    tree_start_RxT=np.zeros(shape, np.int32),
    tree_length_RxT=path_length,
    shared=False,
    profile=tuple(
      (min(begin + block, longest), trees) for begin in range(0, longest, block)
    ),
    paths=types.Paths(path, home),
  )
  return PackedPrompts(tokens, layout, index.reshape(-1), first.reshape(-1))


class _Prefixes:
  """The distinct prefixes of prompts: the token and a home of each."""

  def __init__(self):
    self.tokens, self.homes, self._children = [], [], {}

  def add(self, prompt: Sequence[int], home: int) -> list[int]:
    """The numbers of the prompt's prefixes; `home` is that of its first."""
    path, parent = [], -1
    for p, token in enumerate(prompt):
      node = self._children.setdefault((parent, token), len(self.tokens))
      if node == len(self.tokens):
        self.tokens.append(token)
        self.homes.append(home + p)
      path.append(node)
      parent = node
    return path
