"""A batch as text: what is trained, read from the arrays themselves."""

import textwrap
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from dpo_jax import types

WIDTH = 78
# Scored tokens stand between these.
OPEN, CLOSE = '⟦', '⟧'
# Of a long text, so many characters are shown, from both of its ends.
_TEXT_LIMIT = 600


class Completion(NamedTuple):
  """One completion of a row, as its slot, branch and scores say.

  tokens: i32[tokens]; scored: bool[tokens]; faults: a sentence for each score
  that fits no token.
  """

  record: int
  label: float
  prompt: np.ndarray
  tokens: np.ndarray
  scored: np.ndarray
  faults: list[str]


def preview(
  batch: types.Batch,
  records,
  tokenizer,
  *,
  max_trees: int = 1,
  max_completions: int = 4,
) -> str:
  """The first trees of the first row, decoded, scored tokens between ⟦ and ⟧.

  Of `records` only `where` and `kind` are used: text, scores and preferences
  are the batch's. A tree is shown with those that its examples compare it with.
  A score that does not predict the token after its position is reported with
  its completion.
  """
  row = first_row(batch)
  blocks, seen = [], set()
  for tree in range(np.count_nonzero(row.layout.tree_length_RxT)):
    slots = _related(row, tree)
    if len(blocks) < max_trees and slots and not seen & set(slots):
      blocks.append(_block(row, slots, records, tokenizer, max_completions))
    seen |= set(slots)
  scores = np.count_nonzero(row.score_weight_RxN)
  head = (
    f'First row of the batch: {np.count_nonzero(row.layout.segment_RxL)} '
    f'tokens, {scores} of them scored: those between {OPEN} and {CLOSE}.'
  )
  return '\n\n'.join([head, *blocks])


def completion(row: types.Batch, slot: int) -> Completion:
  """The completion in `slot` of a row (a batch without its R axis)."""
  layout = row.layout
  last = row.slot_last_RxS[slot]
  in_tree = layout.segment_RxL == layout.segment_RxL[last]
  in_branch = layout.branch_RxL == layout.branch_RxL[last]
  prompt = np.flatnonzero(in_tree & (layout.branch_RxL == 0))
  own = np.flatnonzero(in_tree & in_branch)
  scored, faults = np.zeros(len(own), bool), []
  # Position -> the place in the completion of the token that it predicts.
  predicts = [*prompt[-1:], *own[:-1]]
  predicts = dict(zip(predicts, range(not len(prompt), len(own))))
  mine = (row.score_slot_RxN == slot) & (row.score_weight_RxN > 0)
  for n in np.flatnonzero(mine):
    position, token = row.score_index_RxN[n], row.score_token_RxN[n]
    at = predicts.get(position)
    if at is None:
      faults.append(f'position {position} precedes none of its tokens')
    elif row.tokens_RxL[own[at]] != token:
      faults.append(
        f'position {position} precedes token {row.tokens_RxL[own[at]]}, but '
        f'is scored for {token}'
      )
    elif scored[at]:
      faults.append(f'position {position} is scored twice')
    else:
      scored[at] = True
  return Completion(
    record=int(row.slot_record_RxS[slot]),
    label=float(row.slot_label_RxS[slot]),
    prompt=row.tokens_RxL[prompt],
    tokens=row.tokens_RxL[own],
    scored=scored,
    faults=faults,
  )


def first_row(batch: types.Batch) -> types.Batch:
  """Row 0 as NumPy arrays without the R axis."""
  return jax.tree.map(lambda x: np.asarray(x[0]), batch)


def _related(row: types.Batch, tree: int) -> list[int]:
  """Slots of a tree, and those that an example compares them with."""
  inside = row.layout.segment_RxL[row.slot_last_RxS] == tree + 1
  slots = {*np.flatnonzero(inside & (row.slot_record_RxS >= 0)).tolist()}
  for example in _examples(row):
    if slots & set(example):
      slots |= set(example)
  return sorted(slots)


def _examples(row: types.Batch) -> list[list[int]]:
  return row.example_slots_RxExK[row.example_weight_RxE > 0].tolist()


def _block(row, slots, records, tokenizer, max_completions: int) -> str:
  """A prompt, its completions, and which of them are preferred."""
  found = [completion(row, slot) for slot in slots]
  first = found[0]
  out = [
    f'{records.where(first.record)}: prompt, {len(first.prompt)} tokens',
    *_indented(tokenizer.decode(first.prompt.tolist())),
  ]
  for number, each in enumerate(found[:max_completions], start=1):
    label = {1.0: ', desirable', 0.0: ', undesirable'}.get(each.label, '')
    if records.kind == 'rated':
      label = f', rated {each.label:g}'
    out.append(
      f'completion {number}{label}: {each.scored.sum()} of {len(each.tokens)} '
      'tokens scored'
    )
    out += _indented(_marked(each, tokenizer))
    out += [f'  WRONG: {fault}' for fault in _few(each.faults)]
    if not np.array_equal(each.prompt, first.prompt):
      out.append('  WRONG: it continues another prompt:')
      out += _indented(tokenizer.decode(each.prompt.tolist()))
  if len(found) > max_completions:
    out.append(f'and {len(found) - max_completions} more completions')
  number = {slot: str(i) for i, slot in enumerate(slots, start=1)}
  show, what = EXAMPLES.get(records.kind, EXAMPLES['pairs'])
  examples = [
    show([number[slot] for slot in example])
    for example in _examples(row)
    if len(example) > 1 and set(example) <= set(slots)
  ]
  if examples:
    out.append(f'{what}: ' + ', '.join(_few(examples, limit=12)))
  return '\n'.join(out)


# Kind of record -> how an example of several completions is written.
EXAMPLES: dict[str, tuple[Callable[[list[str]], str], str]] = {
  'pairs': (' > '.join, 'preferred'),
  'targeted': (
    lambda slots: f'{slots[0]} > {slots[1]} (target {slots[2]})',
    'preferred',
  ),
  'kto': (lambda slots: f'{slots[1]} for {slots[0]}', 'mismatched'),
}


def _few(lines: list[str], limit: int = 3) -> list[str]:
  rest = [f'and {len(lines) - limit} more'] if len(lines) > limit else []
  return [*lines[:limit], *rest]


def _marked(each: Completion, tokenizer) -> str:
  """Its text, every run of scored tokens between marks."""
  edges = np.flatnonzero(np.diff(each.scored)) + 1
  runs = zip(np.split(each.tokens, edges), np.split(each.scored, edges))
  texts = (
    (tokenizer.decode(tokens.tolist(), start=False), bool(scored[0]))
    for tokens, scored in runs
    if len(tokens)
  )
  return ''.join(f'{OPEN}{t}{CLOSE}' if scored else t for t, scored in texts)


def _indented(text: str) -> list[str]:
  """Lines of at most `WIDTH` characters; what would not print is escaped."""
  if len(text) > _TEXT_LIMIT:
    half = _TEXT_LIMIT // 2
    left_out = len(text) - 2 * half
    text = f'{text[:half]} [... {left_out} characters ...] {text[-half:]}'
  return [
    '  ' + part
    for line in text.replace('\n', '⏎\n').split('\n')
    for part in textwrap.wrap(
      ''.join(c if c.isprintable() else repr(c)[1:-1] for c in line),
      WIDTH - 2,
      expand_tabs=False,
      replace_whitespace=False,
      drop_whitespace=False,
    )
  ]
