"""Batches of prompts with all of their completions, for a reward model."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from dpo_jax import types
from dpo_jax.data import packing, plan, store
from dpo_jax.data import records as records_lib

# The least length to which anything is padded.
LEAST_LENGTH = 16
Ids = list[int]


class PromptBatch(NamedTuple):
  """What a reward model reads, in one row.

  tokens_1xL: i32. last_1xS: i32, where each completion ends. samples: which
  sample each of the first of these S is.
  """

  tokens_1xL: np.ndarray
  layout: types.Layout
  last_1xS: np.ndarray
  samples: list[int]


def group(
  texts: Iterable[tuple[Ids, Ids]], batch_size: int
) -> Iterator[PromptBatch]:
  """Batches of at most `batch_size` (prompt, completion), ids of one or more
  tokens together.

  A prompt is in a batch once, however many completions it has. Lengths are
  padded to four sizes an octave, so that few programs are compiled.
  """
  chosen, count = [], 0
  for each in _groups(texts, batch_size):
    _, completions, _ = each
    if count + len(completions) > batch_size:
      yield _batch(chosen, batch_size)
      chosen, count = [], 0
    chosen.append(each)
    count += len(completions)
  if chosen:
    yield _batch(chosen, batch_size)


_Group = tuple[Ids, list[Ids], list[int]]


def _groups(texts, batch_size: int) -> list[_Group]:
  """(prompt, completions, which samples they are), the shortest first."""
  by_prompt: dict[tuple[int, ...], list[tuple[Ids, int]]] = {}
  for i, (prompt, completion) in enumerate(texts):
    if not completion:  # The model reads the prompt's last token.
      prompt, completion = prompt[:-1], prompt[-1:]
    by_prompt.setdefault(tuple(prompt), []).append((completion, i))
  groups = []
  for prompt, found in by_prompt.items():
    for begin in range(0, len(found), batch_size):
      completions, samples = zip(*found[begin : begin + batch_size])
      groups.append((list(prompt), list(completions), list(samples)))
  return sorted(groups, key=_tokens)


def _tokens(of_prompt: _Group) -> int:
  prompt, completions, _ = of_prompt
  return len(prompt) + sum(map(len, completions))


def _batch(groups: Sequence[_Group], batch_size: int) -> PromptBatch:
  builder = store.Builder()
  for i, (prompt, completions, _) in enumerate(groups):
    record = records_lib.Record(
      prompt='',
      completions=('',) * len(completions),
      examples=tuple((c,) for c in range(len(completions))),
      file='completions',
      row=i + 1,
    )
    builder.add(record, prompt, completions)
  records, tokens = builder.finish(), list(map(_tokens, groups))
  longest = padded(max(tokens))
  trees = 2 ** (len(groups) - 1).bit_length()
  shape = packing.Shape(
    rows=1,
    length=max(longest, padded(sum(tokens))),
    scored=int(records.scored.sum()),
    slots=batch_size,
    examples=batch_size,
    profile=tuple((e, trees) for e in plan.choose_blocks(np.array([longest]))),
  )
  row = [
    packing.form_group(i, [tuple(map(int, e)) for e in records.examples(i)])
    for i in range(len(records))
  ]
  batch = packing.pack(records, [row], shape, share_prompt=True)
  return PromptBatch(
    batch.tokens_RxL,
    batch.layout,
    batch.slot_last_RxS,
    [sample for *_, samples in groups for sample in samples],
  )


def padded(length: int) -> int:
  """The least of four sizes an octave that holds `length`."""
  unit = 2 ** max(0, (length - 1).bit_length() - 3)
  return max(LEAST_LENGTH, -(-length // unit) * unit)
