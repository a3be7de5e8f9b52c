"""Batches of prompts with all of their completions, to be scored by a model."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from dpo_jax import types
from dpo_jax.data import plan, store
from dpo_jax.data import records as records_lib

# The least length to which anything is padded.
LEAST_LENGTH = 16
Ids = list[int]


class PromptBatch(NamedTuple):
  """A batch of one row; sample `samples[s]` is slot s."""

  batch: types.Batch
  samples: list[int]


def group(
  texts: Iterable[tuple[Ids, Ids]], batch_size: int
) -> Iterator[PromptBatch]:
  """Batches of at most `batch_size` (prompt, completion), ids of one or more
  tokens together.

  A prompt is in a batch once, however many completions it has. Lengths are
  padded to four sizes an octave, so that few programs are compiled.
  """
  groups = _groups(texts, batch_size)
  if not groups:
    return
  most = max(len(completions) for _, completions, _ in groups)
  per_batch = max(1, batch_size // most)
  for begin in range(0, len(groups), per_batch):
    yield _batch(groups[begin : begin + per_batch], per_batch, most)


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


def _batch(groups: Sequence[_Group], count: int, most: int) -> PromptBatch:
  """`groups` in a row that holds `count`, of at most `most` completions."""
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
  limits = plan.Limits(
    rows=1,
    records=count,
    completions=most,
    examples=most,
    max_prompt_length=padded(max(len(p) for p, *_ in groups)),
    max_completion_length=padded(
      max(len(c) for _, cs, _ in groups for c in cs)
    ),
    row_length=padded(sum(map(_tokens, groups))),
  )
  batch = limits.pack(builder.finish())
  # Slots are in the order of the row's groups, the longest first.
  by_record = {i: list(samples) for i, (*_, samples) in enumerate(groups)}
  records = [int(r) for r in batch.slot_record_RxS[0] if r >= 0]
  return PromptBatch(batch, [by_record[r].pop(0) for r in records])


def padded(length: int) -> int:
  """The least of four sizes an octave that holds `length`."""
  unit = 2 ** max(0, (length - 1).bit_length() - 3)
  return max(LEAST_LENGTH, -(-length // unit) * unit)
