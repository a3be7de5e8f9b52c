"""Groups of completions to packed rows: the forest of `types.Batch`."""

import heapq
from typing import NamedTuple

import jax
import numpy as np

from dpo_jax import types
from dpo_jax.data import store


class Group(NamedTuple):
  """Examples of one record that share a row, and the completions they need.

  `completions` are indices into the record's; `examples` into `completions`.
  """

  record: int
  completions: tuple[int, ...]
  examples: tuple[tuple[int, ...], ...]


class Shape(NamedTuple):
  """The sizes of a `types.Batch`, but for the arity of its examples."""

  rows: int
  length: int
  scored: int
  slots: int
  examples: int
  profile: tuple[tuple[int, int], ...]


def form_group(record: int, examples) -> Group:
  """The group of some of a record's examples (tuples of completion indices)."""
  completions = tuple(sorted({c for example in examples for c in example}))
  place = {c: i for i, c in enumerate(completions)}
  local = tuple(tuple(place[c] for c in example) for example in examples)
  return Group(record, completions, local)


def split_examples(records: store.TokenRecords, record, examples, limit):
  """Groups of at most `limit` tokens each, the prompt repeated in each.

  Groups are filled in the order of the examples; an example that exceeds the
  limit by itself gets a group of its own. `limit` None never splits.
  """
  prompt = records.prompt_length(record)
  lengths = records.completion_lengths(record)
  if limit is None:
    return [form_group(record, examples)]
  chunks, used = [[]], set()
  for example in examples:
    used |= set(example)
    if chunks[-1] and prompt + sum(lengths[c] for c in used) > limit:
      chunks.append([])
      used = set(example)
    chunks[-1].append(example)
  return [form_group(record, chunk) for chunk in chunks]


def trees_of(group: Group, share_prompt: bool) -> list[tuple[int, ...]]:
  """The completions of each of the group's trees."""
  if share_prompt:
    return [group.completions]
  return [(c,) for c in group.completions]


def tree_lengths(records, group: Group, share_prompt: bool) -> list[int]:
  """Tokens of each of the group's trees."""
  prompt = records.prompt_length(group.record)
  lengths = records.completion_lengths(group.record)
  trees = trees_of(group, share_prompt)
  return [prompt + sum(int(lengths[c]) for c in tree) for tree in trees]


def assign_rows(
  tokens: list[int], rows: int, most: int | None = None
) -> list[list[int]]:
  """Indices of the groups of each row: the longest first, to the emptiest row.

  Graham's longest-processing-time rule: within 4/3 of the shortest possible row
  length (SIAM J. Appl. Math. 17(2), 1969). Ties go to the lower index.
  most: groups of a row; None for any number.
  """
  out = [[] for _ in range(rows)]
  loads = [(0, r) for r in range(rows)]
  for i in sorted(range(len(tokens)), key=lambda i: (-tokens[i], i)):
    load, row = heapq.heappop(loads)
    out[row].append(i)
    if len(out[row]) != most:
      heapq.heappush(loads, (load + tokens[i], row))
  return out


def pack(
  records: store.TokenRecords,
  rows: list[list[Group]],
  shape: Shape,
  *,
  share_prompt: bool,
) -> types.Batch:
  """A batch of NumPy arrays from the groups of each row."""
  packed = [
    _Row(records, groups, shape, share_prompt).arrays for groups in rows
  ]
  arrays = jax.tree.map(lambda *of_rows: np.stack(of_rows), *packed)
  layout = types.Layout(
    **{name: arrays.pop(name) for name in _LAYOUT},
    shared=share_prompt,
    profile=shape.profile,
  )
  return types.Batch(layout=layout, **arrays)


_LAYOUT = (
  *('segment_RxL', 'branch_RxL', 'position_RxL'),
  *('tree_start_RxT', 'tree_length_RxT'),
)


class _Row:
  """One row's arrays, by their names in a batch, filled from left to right."""

  def __init__(self, records, groups, shape: Shape, share_prompt: bool):
    self.records, self.share_prompt = records, share_prompt

    def padded(names, size, dtype=np.int32, fill=0):
      return {name: np.full(size, fill, dtype) for name in names}

    n, s, e, f32 = shape.scored, shape.slots, shape.examples, np.float32
    self.arrays = {
      **padded(('tokens_RxL', *_LAYOUT[:3]), shape.length),
      **padded(_LAYOUT[3:], shape.profile[0][1]),
      **padded(('score_index_RxN', 'score_token_RxN', 'score_slot_RxN'), n),
      **padded(['score_weight_RxN'], n, f32),
      **padded(('slot_last_RxS', 'slot_length_RxS'), s),
      **padded(['slot_record_RxS'], s, fill=-1),
      **padded(['slot_label_RxS'], s, f32, types.NO_LABEL),
      **padded(['example_slots_RxExK'], (e, records.arity)),
      **padded(['example_weight_RxE'], e, f32),
      **padded(['example_record_RxE'], e, fill=-1),
    }
    extras = {k: np.zeros(n, x.dtype) for k, x in records.extras.items()}
    self.arrays['extras_RxN'] = extras
    self.tokens = self.scored = self.trees = 0
    self._fill(groups)

  def _fill(self, groups: list[Group]):
    """Places all trees, the longest first, and the examples of their slots."""
    first_slot, first_example = 0, 0
    trees = []
    for group in groups:
      a = self.arrays
      lengths = tree_lengths(self.records, group, self.share_prompt)
      place = {c: first_slot + i for i, c in enumerate(group.completions)}
      for length, tree in zip(lengths, trees_of(group, self.share_prompt)):
        trees.append((length, group.record, tree, [place[c] for c in tree]))
      end = first_example + len(group.examples)
      slots = np.asarray(group.examples) + first_slot
      a['example_slots_RxExK'][first_example:end] = slots
      a['example_weight_RxE'][first_example:end] = 1.0
      a['example_record_RxE'][first_example:end] = group.record
      first_slot, first_example = first_slot + len(place), end
    for length, record, tree, slots in sorted(trees, key=lambda t: -t[0]):
      self._place_tree(length, record, tree, slots)

  def _place_tree(self, length, record, tree, slots):
    a, start = self.arrays, self.tokens
    prompt = self.records.prompt(record)
    spans = self.records.completion_spans(record)
    a['tree_start_RxT'][self.trees] = start
    a['tree_length_RxT'][self.trees] = length
    a['segment_RxL'][start : start + length] = self.trees + 1
    at = start + len(prompt)
    a['tokens_RxL'][start:at] = prompt
    a['position_RxL'][start:at] = np.arange(len(prompt))
    for branch, (completion, slot) in enumerate(zip(tree, slots), start=1):
      span = spans[completion]
      end = at + span.stop - span.start
      a['tokens_RxL'][at:end] = self.records.tokens[span]
      a['branch_RxL'][at:end] = branch
      a['position_RxL'][at:end] = len(prompt) + np.arange(end - at)
      predictors = np.arange(at - 1, end - 1)
      predictors[0] = start + len(prompt) - 1
      self._score(slot, record, completion, span, predictors)
      a['slot_last_RxS'][slot] = end - 1
      at = end
    self.tokens, self.trees = start + length, self.trees + 1

  def _score(self, slot, record, completion, span, predictors):
    """Adds scored tokens; without a root nothing predicts the first of all."""
    a = self.arrays
    places = np.flatnonzero(self.records.scored[span])
    tokens = places + span.start
    at, end = self.scored, self.scored + len(places)
    a['score_index_RxN'][at:end] = predictors[places]
    a['score_token_RxN'][at:end] = self.records.tokens[tokens]
    for name, values in self.records.extras.items():
      a['extras_RxN'][name][at:end] = values[tokens]
    a['score_slot_RxN'][at:end] = slot
    a['score_weight_RxN'][at:end] = 1.0
    a['slot_length_RxS'][slot] = len(places)
    a['slot_record_RxS'][slot] = record
    a['slot_label_RxS'][slot] = self.records.labels_of(record)[completion]
    self.scored = end
