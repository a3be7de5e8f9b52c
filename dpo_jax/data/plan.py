"""The shapes of a run: few enough to compile, tight enough to waste little."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dpo_jax import registry, types
from dpo_jax.data import packing, store

# Attention blocks of a tree: more of them skip more masked scores and take
# longer to compile.
MAX_BLOCKS = 4
BLOCK_MULTIPLE = 16
# Candidates for their ends.
MAX_ENDS = 128


class Need(NamedTuple):
  """What one batch needs, whatever shape it is given.

  sizes: the most tokens, scored ones, slots and examples of a row. trees[j]:
  the most trees of a row that reach into attention block j. tokens: of it.
  """

  sizes: np.ndarray
  trees: np.ndarray
  tokens: int


def choose_blocks(tree_lengths: np.ndarray) -> tuple[int, ...]:
  """Ends of the attention blocks that leave the fewest scores to compute.

  A block from b to e costs (e - b) * e scores for each tree longer than b.
  Exact over its candidates, by dynamic programming.
  """
  longest = int(tree_lengths.max())
  multiple = BLOCK_MULTIPLE * -(-longest // (BLOCK_MULTIPLE * MAX_ENDS))
  ends = np.arange(0, _round_up(longest, multiple) + 1, multiple)
  longer = (tree_lengths[:, None] > ends).sum(axis=0)

  def cost(j):
    return longer[:j] * (ends[j] - ends[:j]) * ends[j]

  return tuple(int(ends[j]) for j in _cheapest(len(ends) - 1, MAX_BLOCKS, cost))


def _cheapest(n: int, parts: int, cost) -> list[int]:
  """Ends, the last one n, of the at most `parts` parts of 0..n that cost least.

  `cost(j)[i]` is that of the part from i to j. Dynamic programming.
  """
  best = np.full((parts + 1, n + 1), np.inf)
  best[:, 0] = 0
  back = np.zeros((parts + 1, n + 1), np.int64)
  for k in range(1, parts + 1):
    for j in range(1, n + 1):
      options = best[k - 1, :j] + cost(j)
      back[k, j] = int(np.argmin(options))
      best[k, j] = options[back[k, j]]
  chosen, j = [], n
  for k in range(parts, 0, -1):
    if j:
      chosen.append(j)
      j = int(back[k, j])
  return chosen[::-1]


def need_of(records, rows, *, share_prompt: bool, ends) -> Need:
  """Of a batch's rows (lists of groups); blocks end at `ends`."""
  sizes, trees = [], []
  begins = np.array([0, *ends[:-1]])
  for groups in rows:
    lengths = [
      n for g in groups for n in packing.tree_lengths(records, g, share_prompt)
    ]
    scored = sum(
      records.scored_lengths(g.record)[[*g.completions]].sum() for g in groups
    )
    slots = sum(len(g.completions) for g in groups)
    examples = sum(len(g.examples) for g in groups)
    sizes.append((sum(lengths), scored, slots, examples))
    trees.append((np.array(lengths, int)[:, None] > begins).sum(axis=0))
  tokens = sum(length for length, *_ in sizes)
  return Need(np.max(sizes, axis=0), np.max(trees, axis=0), tokens)


def choose_lengths(lengths: np.ndarray, max_shapes: int) -> list[int]:
  """The at most `max_shapes` row lengths that pad these batches least.

  Exact, by dynamic programming over the distinct lengths; ascending, the last
  one the longest that is needed.
  """
  values, counts = np.unique(lengths, return_counts=True)
  total = np.concatenate([[0], np.cumsum(counts)])

  def cost(j):
    return values[j - 1] * (total[j] - total[:j])

  ends = _cheapest(len(values), max_shapes, cost)
  return [int(values[j - 1]) for j in ends]


def _round_up(x: int, multiple: int) -> int:
  return -(-x // multiple) * multiple


def choose_shapes(
  needs: list[Need],
  *,
  rows: int,
  ends: tuple[int, ...],
  max_shapes: int,
  length_multiple: int,
) -> tuple[list[packing.Shape], np.ndarray]:
  """The run's shapes, and for each batch the index of the one it gets."""
  lengths = np.array([_round_up(n.sizes[0], length_multiple) for n in needs])
  rungs = choose_lengths(lengths, max_shapes)
  index = np.searchsorted(rungs, lengths)
  shapes = []
  for i, length in enumerate(rungs):
    members = [n for n, k in zip(needs, index) if k == i]
    _, *sizes = np.max([n.sizes for n in members], axis=0).tolist()
    trees = np.max([n.trees for n in members], axis=0).tolist()
    profile = tuple((e, n) for e, n in zip(ends, trees) if n)
    shapes.append(packing.Shape(rows, length, *sizes, profile))
  return shapes, index


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
  """Bounds on batches of records that do not exist yet, such as samples.

  All batches within the bounds have one shape, so that a loop that makes its
  own batches between steps compiles once.

  rows: of a batch. records: of a batch. completions, examples: of a record.
  max_prompt_length, max_completion_length: in tokens, with BOS and EOS.
  share_prompt: as in `batches.Placement`.
  """

  rows: int
  records: int
  completions: int
  max_prompt_length: int
  max_completion_length: int
  examples: int = 1
  share_prompt: bool = True
  length_multiple: int = 16

  def __post_init__(self):
    for field in dataclasses.fields(self):
      if field.name != 'share_prompt':
        registry.check_integer(field.name, getattr(self, field.name), 1)

  @property
  def records_per_row(self) -> int:
    return -(-self.records // self.rows)

  def shape(self) -> packing.Shape:
    """The shape that holds every batch within the bounds."""
    branches = self.completions if self.share_prompt else 1
    tree = self.max_prompt_length + branches * self.max_completion_length
    slots = self.records_per_row * self.completions
    trees = slots // branches
    ends = choose_blocks(np.full(trees, tree))
    return packing.Shape(
      rows=self.rows,
      length=_round_up(trees * tree, self.length_multiple),
      scored=slots * self.max_completion_length,
      slots=slots,
      examples=self.records_per_row * self.examples,
      profile=tuple((end, trees) for end in ends),
    )

  def pack(
    self, records: store.TokenRecords, chosen: Sequence[int] | None = None
  ) -> types.Batch:
    """The chosen records, or all, as one batch; ValueError beyond a bound."""
    chosen = range(len(records)) if chosen is None else chosen
    self.check(records, chosen)
    groups = [
      packing.form_group(i, [tuple(map(int, e)) for e in records.examples(i)])
      for i in chosen
    ]
    sizes = [
      sum(packing.tree_lengths(records, group, self.share_prompt))
      for group in groups
    ]
    rows = packing.assign_rows(sizes, self.rows, self.records_per_row)
    return packing.pack(
      records,
      [[groups[i] for i in row] for row in rows],
      self.shape(),
      share_prompt=self.share_prompt,
    )

  def check(self, records: store.TokenRecords, chosen: Sequence[int]) -> None:
    """ValueError with the first of these records that is beyond a bound."""
    if len(chosen) > self.records:
      raise ValueError(
        f'{len(chosen)} records; a batch holds at most records={self.records}.'
      )
    for i in chosen:
      lengths = records.completion_lengths(i)
      for name, value in (
        ('completions', len(lengths)),
        ('examples', len(records.examples(i))),
        ('max_prompt_length', records.prompt_length(i)),
        ('max_completion_length', int(lengths.max())),
      ):
        if value > getattr(self, name):
          raise ValueError(
            f'{records.where(i)} is beyond {name}={getattr(self, name)}: it '
            f'has {value}.'
          )
