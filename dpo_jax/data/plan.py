"""The shapes of a run: few enough to compile, tight enough to waste little."""

from typing import NamedTuple

import numpy as np

from dpo_jax.data import packing

# Query chunks of the largest tree; more of them skip more masked scores and
# take longer to compile.
MAX_CHUNKS = 8
CHUNK_MULTIPLE = 16


class Need(NamedTuple):
  """What one batch needs, whatever shape it is given."""

  length: int
  scored: int
  slots: int
  examples: int
  profile: tuple[int, ...]
  tokens: int


def chunk_size(longest_tree: int) -> int:
  """Tokens per attention chunk."""
  return _round_up(-(-longest_tree // MAX_CHUNKS), CHUNK_MULTIPLE)


def need_of(records, rows, *, share_prompt: bool, chunk: int) -> Need:
  """Maxima over the rows (lists of groups) of one batch."""
  profiles, need = [], np.zeros(4, np.int64)
  tokens = 0
  for groups in rows:
    trees = [
      t for g in groups for t in packing.tree_lengths(records, g, share_prompt)
    ]
    scored = sum(_scored(records, g) for g in groups)
    slots = sum(len(g.completions) for g in groups)
    examples = sum(len(g.examples) for g in groups)
    need = np.maximum(need, (sum(trees), scored, slots, examples))
    tokens += sum(trees)
    longest = max(trees, default=0)
    profiles.append(
      tuple(
        sum(t > j * chunk for t in trees) for j in range(-(-longest // chunk))
      )
    )
  return Need(*map(int, need), _elementwise_max(profiles), tokens)


def _scored(records, group) -> int:
  lengths = records.completion_lengths(group.record)
  rootless = not records.prompt_length(group.record)
  return sum(int(lengths[c]) - rootless for c in group.completions)


def _elementwise_max(profiles) -> tuple[int, ...]:
  width = max(map(len, profiles))
  padded = [tuple(p) + (0,) * (width - len(p)) for p in profiles]
  return tuple(map(max, zip(*padded)))


def choose_lengths(lengths: np.ndarray, max_shapes: int) -> list[int]:
  """The at most `max_shapes` row lengths that pad these batches least.

  Exact, by dynamic programming over the distinct lengths; ascending, the last
  one the longest that is needed.
  """
  values, counts = np.unique(lengths, return_counts=True)
  n = len(values)
  total = np.concatenate([[0], np.cumsum(counts)])
  cost = np.full((max_shapes + 1, n + 1), np.inf)
  cost[:, 0] = 0
  back = np.zeros((max_shapes + 1, n + 1), np.int64)
  for k in range(1, max_shapes + 1):
    for j in range(1, n + 1):
      options = cost[k - 1, :j] + values[j - 1] * (total[j] - total[:j])
      back[k, j] = int(np.argmin(options))
      cost[k, j] = options[back[k, j]]
  chosen, j = [], n
  for k in range(max_shapes, 0, -1):
    if j:
      chosen.append(int(values[j - 1]))
      j = int(back[k, j])
  return chosen[::-1]


def _round_up(x: int, multiple: int) -> int:
  return -(-x // multiple) * multiple


def choose_shapes(
  needs: list[Need],
  *,
  rows: int,
  arity: int,
  chunk: int,
  max_shapes: int,
  length_multiple: int,
) -> tuple[list[packing.Shape], np.ndarray]:
  """The run's shapes, and for each batch the index of the one it gets."""
  lengths = np.array([_round_up(n.length, length_multiple) for n in needs])
  rungs = choose_lengths(lengths, max_shapes)
  index = np.searchsorted(rungs, lengths)
  shapes = []
  for i, length in enumerate(rungs):
    members = [n for n, k in zip(needs, index) if k == i]
    shapes.append(
      packing.Shape(
        rows=rows,
        length=length,
        scored=max(n.scored for n in members),
        slots=max(n.slots for n in members),
        examples=max(n.examples for n in members),
        arity=arity,
        profile=_elementwise_max([n.profile for n in members]),
        chunk=chunk,
      )
    )
  return shapes, index
