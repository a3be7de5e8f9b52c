"""Step number -> batch: index-based, so that a position is an integer."""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence

import grain
import jax
import numpy as np

from dpo_jax import registry, types
from dpo_jax.data import order, packing, plan, row_sharding


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placement:
  """Which examples make up a batch, and in which of its rows they lie.

  Batch i holds examples i * batch_size and on, `batch_size` of them unless
  `num_examples` ends before.

  seed: of the shuffling; None keeps the order. share_prompt: one tree per group
    of completions of a prompt, rather than one per completion.
    max_tree_tokens: split larger groups, repeating the prompt; ValueError for
    an example that compares completions and doesn't fit, while a completion by
    itself may be longer.
  """

  records: object
  num_batches: int
  rows: int
  seed: int | None
  batch_size: int
  share_prompt: bool = True
  max_tree_tokens: int | None = None
  num_examples: int | None = None

  def __post_init__(self):
    registry.check_at_least('batch_size', self.batch_size, 1)
    if not len(self.records):
      raise ValueError('There are no records to make batches of.')

  @functools.cached_property
  def stream(self) -> order.ExampleStream:
    return order.ExampleStream(self.records, seed=self.seed)

  def rows_of(self, index: int) -> list[list[packing.Group]]:
    """The groups of each row of batch `index`."""
    begin = index * self.batch_size
    end = begin + self.batch_size
    if self.num_examples is not None:
      end = min(end, self.num_examples)
    groups = []
    for record, examples in self.stream.slice(begin, end):
      groups += packing.split_examples(
        self.records, record, examples, self.max_tree_tokens
      )
    lengths = [self.tree_lengths(group) for group in groups]
    limit, arity = self.max_tree_tokens, self.records.arity
    for group, trees in zip(groups, lengths):
      if limit is not None and arity > 1 and max(trees) > limit:
        raise ValueError(
          f'{self.records.where(group.record)}: a prompt and the {arity} '
          f'completions of an example are {max(trees)} tokens long, more than '
          f'max_tree_tokens={limit}, and an example is not split. Raise '
          'max_tree_tokens, or lower max_length or the completions of a row.'
        )
    rows = packing.assign_rows([*map(sum, lengths)], self.rows)
    return [[groups[i] for i in row] for row in rows]

  def tree_lengths(self, group: packing.Group) -> list[int]:
    """Tokens of each of the group's trees."""
    return packing.tree_lengths(self.records, group, self.share_prompt)


@dataclasses.dataclass(frozen=True)
class PackedBatches:
  """A random-access sequence of `types.Batch`es of NumPy arrays.

  Batch i has the shape `shapes[shape_index[i]]` and `tokens[i]` real tokens.
  rows: those of its rows that are packed, where other processes pack the rest;
  None for all. extras: further per-token quantities by name, for each batch an
  array of all of its rows.
  """

  placement: Placement
  shapes: list[packing.Shape]
  shape_index: np.ndarray
  tokens: np.ndarray
  rows: tuple[int, ...] | None = None
  extras: Mapping[str, Sequence[np.ndarray]] = dataclasses.field(
    default_factory=dict
  )

  def __len__(self) -> int:
    return len(self.shape_index)

  def __getitem__(self, index: int) -> types.Batch:
    place = self.placement
    groups = place.rows_of(index)
    if self.rows is not None:
      groups = [groups[row] for row in self.rows]
    batch = packing.pack(
      place.records,
      groups,
      self.shapes[self.shape_index[index]],
      share_prompt=place.share_prompt,
    )
    rows = slice(None) if self.rows is None else list(self.rows)
    extras = {name: x[index][rows] for name, x in self.extras.items()}
    return batch.replace(extras_RxN=batch.extras_RxN | extras)

  def of(self, records) -> 'PackedBatches':
    """These batches, of records that differ in their extras alone."""
    placement = dataclasses.replace(self.placement, records=records)
    return dataclasses.replace(self, placement=placement)

  def of_rows(self, rows: Sequence[int]) -> 'PackedBatches':
    """These rows of these batches; nothing of the others is read."""
    return dataclasses.replace(self, rows=tuple(rows))

  def with_extras(self, **extras: Sequence[np.ndarray]) -> 'PackedBatches':
    """These batches, each with its arrays of these names."""
    return dataclasses.replace(self, extras={**self.extras, **extras})

  @property
  def real_fraction(self) -> float:
    """Real tokens over all tokens of the run's batches."""
    lengths = np.array([s.length for s in self.shapes])
    total = lengths[self.shape_index].sum() * self.placement.rows
    return self.tokens.sum() / total


def plan_together(
  placements: Sequence[Placement], *, max_shapes: int, length_multiple: int = 16
) -> list[PackedBatches]:
  """Batches of at most `max_shapes` shapes, the same for all placements."""
  registry.check_at_least('max_shapes', max_shapes, 1)
  registry.check_at_least('length_multiple', length_multiple, 1)
  placed = [(p, p.rows_of(i)) for p in placements for i in range(p.num_batches)]
  trees = []
  for p, rows in placed:
    for group in itertools.chain(*rows):
      trees += p.tree_lengths(group)
  ends = plan.choose_blocks(np.array(trees))
  needs = [
    plan.need_of(p.records, rows, share_prompt=p.share_prompt, ends=ends)
    for p, rows in placed
  ]
  shapes, index = plan.choose_shapes(
    needs,
    rows=placements[0].rows,
    ends=ends,
    max_shapes=max_shapes,
    length_multiple=length_multiple,
  )
  ends = np.cumsum([p.num_batches for p in placements])[:-1]
  tokens = np.split(np.array([n.tokens for n in needs]), ends)
  return [
    PackedBatches(p, shapes, *part)
    for p, *part in zip(placements, np.split(index, ends), tokens)
  ]


def train_batches(
  records,
  num_steps: int,
  rows: int,
  seed: int,
  *,
  batch_size: int,
  max_shapes: int = 3,
  share_prompt: bool = True,
  max_tree_tokens: int | None = None,
  length_multiple: int = 16,
) -> PackedBatches:
  """Shuffled batches, epoch after epoch; see `Placement`."""
  placement = Placement(
    records=records,
    num_batches=num_steps,
    rows=rows,
    seed=seed,
    batch_size=batch_size,
    share_prompt=share_prompt,
    max_tree_tokens=max_tree_tokens,
  )
  (packed,) = plan_together(
    [placement], max_shapes=max_shapes, length_multiple=length_multiple
  )
  return packed


def eval_batches(
  records,
  rows: int,
  beside: Sequence = (),
  *,
  batch_size: int,
  num_examples: int | None = None,
  max_shapes: int = 1,
  share_prompt: bool = True,
  max_tree_tokens: int | None = None,
  length_multiple: int = 16,
) -> list[PackedBatches]:
  """Every example once, in order; what the last batch lacks has weight 0.

  num_examples: only the first so many; None for all.
  beside: further records to score in batches of the same shapes, which hold as
  many completions. Returns the batches of `records`, then of each of these.
  """
  registry.check_at_least('batch_size', batch_size, 1)  # Divided by below.
  if num_examples is not None:
    registry.check_at_least('num_examples', num_examples, 1)

  def placement(part, limit=None):
    size = max(batch_size * records.arity // part.arity, 1)
    examples = int(part.example_counts.sum())
    if limit is not None:
      examples = min(examples, limit)
    return Placement(
      records=part,
      num_batches=-(-examples // size),
      rows=rows,
      seed=None,
      batch_size=size,
      share_prompt=share_prompt,
      max_tree_tokens=max_tree_tokens,
      num_examples=examples,
    )

  return plan_together(
    [placement(records, num_examples), *map(placement, beside)],
    max_shapes=max_shapes,
    length_multiple=length_multiple,
  )


def iterate(
  packed: PackedBatches,
  mesh: jax.sharding.Mesh,
  *,
  start: int = 0,
  prefetch: int = 4,
) -> Iterator[types.Batch]:
  """Batches from `start` on as device arrays, their rows split over `mesh`.

  Each process packs the rows that its own devices hold, up to `prefetch`
  batches ahead, in a thread.
  """
  rows = row_sharding.local_rows(mesh, packed.placement.rows)
  dataset = grain.MapDataset.source(packed.of_rows(rows))[start:]
  options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=prefetch)
  for batch in dataset.to_iter_dataset(options):
    yield row_sharding.to_devices(mesh, batch)
