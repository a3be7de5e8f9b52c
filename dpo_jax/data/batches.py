"""Step number -> batch: index-based, so that a position is an integer."""

import grain
import numpy as np

from dpo_jax import registry, types
from dpo_jax.data import order, packing, plan


class PackedBatches:
  """A random-access sequence of `types.Batch`es of NumPy arrays.

  Batch i holds examples i * batch_size and on, `batch_size` of them unless
  `num_examples` ends before, packed into `rows` rows of one of at most
  `max_shapes` shapes, chosen for all of the run's batches when it is built.

  share_prompt: one tree per group of completions of a prompt, rather than one
    per completion. max_tree_tokens: split larger groups, repeating the prompt.
  """

  def __init__(
    self,
    records,
    *,
    num_batches: int,
    rows: int,
    seed: int | None,
    batch_size: int,
    max_shapes: int,
    share_prompt: bool = True,
    max_tree_tokens: int | None = None,
    length_multiple: int = 16,
    num_examples: int | None = None,
  ):
    for name, value in (
      ('batch_size', batch_size),
      ('max_shapes', max_shapes),
      ('length_multiple', length_multiple),
    ):
      registry.check_at_least(name, value, 1)
    if not len(records):
      raise ValueError('There are no records to make batches of.')
    self.records, self.share_prompt = records, share_prompt
    self.batch_size, self.rows = batch_size, rows
    self.max_tree_tokens = max_tree_tokens
    self.num_examples = num_examples or num_batches * batch_size
    self.stream = order.ExampleStream(records, seed=seed)
    placed = [self._place(i) for i in range(num_batches)]
    trees = [
      n
      for rows_of_batch in placed
      for groups in rows_of_batch
      for g in groups
      for n in packing.tree_lengths(records, g, share_prompt)
    ]
    ends = plan.choose_blocks(np.array(trees))
    needs = [
      plan.need_of(records, p, share_prompt=share_prompt, ends=ends)
      for p in placed
    ]
    self.shapes, self.shape_index = plan.choose_shapes(
      needs,
      rows=rows,
      arity=records.arity,
      ends=ends,
      max_shapes=max_shapes,
      length_multiple=length_multiple,
    )
    self.tokens = np.array([n.tokens for n in needs])

  def _place(self, index: int) -> list[list[packing.Group]]:
    begin = index * self.batch_size
    end = min(begin + self.batch_size, self.num_examples)
    groups = [
      group
      for record, examples in self.stream.slice(begin, end)
      for group in packing.split_examples(
        self.records, record, examples, self.max_tree_tokens
      )
    ]
    sizes = [
      sum(packing.tree_lengths(self.records, g, self.share_prompt))
      for g in groups
    ]
    rows = packing.assign_rows(sizes, self.rows)
    return [[groups[i] for i in row] for row in rows]

  def __len__(self) -> int:
    return len(self.shape_index)

  def __getitem__(self, index: int) -> types.Batch:
    shape = self.shapes[self.shape_index[index]]
    return packing.pack(
      self.records, self._place(index), shape, share_prompt=self.share_prompt
    )

  @property
  def real_fraction(self) -> float:
    """Real tokens over all tokens of the run's batches."""
    lengths = np.array([s.length for s in self.shapes])
    return self.tokens.sum() / (lengths[self.shape_index].sum() * self.rows)


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
  """Shuffled batches, epoch after epoch; see `PackedBatches`."""
  return PackedBatches(
    records,
    num_batches=num_steps,
    rows=rows,
    seed=seed,
    batch_size=batch_size,
    max_shapes=max_shapes,
    share_prompt=share_prompt,
    max_tree_tokens=max_tree_tokens,
    length_multiple=length_multiple,
  )


def eval_batches(
  records,
  rows: int,
  *,
  batch_size: int,
  max_shapes: int = 1,
  share_prompt: bool = True,
  max_tree_tokens: int | None = None,
  length_multiple: int = 16,
) -> PackedBatches:
  """Every example once, in order; what the last batch lacks has weight 0."""
  registry.check_at_least('batch_size', batch_size, 1)
  examples = int(records.example_counts.sum())
  return PackedBatches(
    records,
    num_batches=-(-examples // batch_size),
    rows=rows,
    seed=None,
    num_examples=examples,
    batch_size=batch_size,
    max_shapes=max_shapes,
    share_prompt=share_prompt,
    max_tree_tokens=max_tree_tokens,
    length_multiple=length_multiple,
  )


def iterate(batches: PackedBatches, *, start: int = 0, prefetch: int = 4):
  """A grain iterator over batches from `start` on, made ahead in threads."""
  dataset = grain.MapDataset.source(batches)[start:]
  options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=prefetch)
  return iter(dataset.to_iter_dataset(options))
