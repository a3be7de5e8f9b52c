"""The texts of records as ids that can be joined: see tokenise.py."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from dpo_jax.data import records

Ids = list[int]


def encode(
  items: Sequence[records.Record], tokenizer: Any
) -> Iterator[tuple[Ids, list[Ids], list[bool] | None]]:
  """(ids of the prompt, of the completions, which of the only one's count).

  Of each record; the last is None where all of them do. tokenizer: its
  `encode_parts` and `starts_after` are used.
  """
  prompts = tokenizer.encode_parts([item.prompt for item in items], start=True)
  # An empty prompt leaves the start of the text to the completion.
  starts = [not ids or tokenizer.starts_after(ids) for ids in prompts]
  encoded = {}
  for start in (True, False):
    texts = [
      text
      for item, begins in zip(items, starts)
      if begins is start and item.scored is None
      for text in item.completions
    ]
    encoded[start] = iter(tokenizer.encode_parts(texts, start=start))
  for item, prompt, start in zip(items, prompts, starts):
    if item.scored is None:
      count = len(item.completions)
      yield prompt, list(itertools.islice(encoded[start], count)), None
    else:
      ids, scored = _encode_turns(item, prompt, tokenizer)
      yield prompt, [ids], scored


def _encode_turns(record: records.Record, prompt: Ids, tokenizer: Any):
  """(ids of the completion, for each of them whether it is scored)."""
  (text,) = record.completions
  ids, scored, at = list(prompt), [], 0
  for begin, end in record.scored:
    for part, counts in ((text[at:begin], False), (text[begin:end], True)):
      start = not ids or tokenizer.starts_after(ids)
      (more,) = tokenizer.encode_parts([part], start=start)
      ids += more
      scored += [counts] * len(more)
    at = end
  return ids[len(prompt) :], scored
