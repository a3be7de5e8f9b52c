"""The texts of records as ids that can be joined: see contract.py."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from dpo_jax.data import control, drops, records

Ids = list[int]


class Encoded(NamedTuple):
  """Ids of a record's prompt and of its completions.

  scored: which ids of the only completion count; None where all do. literal:
  the control tokens that are encoded as text.
  """

  prompt: Ids
  completions: list[Ids]
  scored: list[bool] | None
  literal: tuple[str, ...]


def encode(
  items: Sequence[records.Record], tokenizer: Any, *, tokens: bool = False
) -> Iterator[Encoded | drops.RowError]:
  """The ids of each record, or why it has none.

  tokenizer: its `encode_parts`, `encode_written`, `control_pattern` and
  `starts_after` are used. tokens: whether control tokens in a prompt that no
  template wrote are tokens.
  """
  written = [
    () if tokens else literal_spans(item, tokenizer.control_pattern)
    for item in items
  ]
  plain = iter(
    tokenizer.encode_parts(
      [item.prompt for item, spans in zip(items, written) if not spans],
      start=True,
    )
  )
  prompts = [
    _written(tokenizer, item.prompt, spans, True) if spans else next(plain)
    for item, spans in zip(items, written)
  ]
  # An empty prompt leaves the start of the text to the completion.
  starts = [
    isinstance(ids, drops.RowError) or not ids or tokenizer.starts_after(ids)
    for ids in prompts
  ]
  encoded = {}
  for start in (True, False):
    texts = [
      text
      for item, begins in zip(items, starts)
      if begins is start and item.scored is None
      for text in item.completions
    ]
    encoded[start] = iter(tokenizer.encode_parts(texts, start=start))
  for item, prompt, spans, start in zip(items, prompts, written, starts):
    literal = tuple(item.prompt[begin:end] for begin, end in spans)
    ids = []
    if item.scored is None:
      ids = list(itertools.islice(encoded[start], len(item.completions)))
    if isinstance(prompt, drops.RowError):
      yield prompt
    elif item.scored is None:
      yield Encoded(prompt, ids, None, literal)
    else:
      yield _encode_turns(item, prompt, literal, tokenizer)


def literal_spans(record: records.Record, tokens) -> tuple[control.Span, ...]:
  """Where control tokens are in the prompt that no template wrote."""
  if record.rendered:
    return record.literal[0] if record.literal else ()
  return tuple(match.span() for match in tokens.finditer(record.prompt))


def _written(tokenizer: Any, text: str, spans, start: bool):
  """`Tokenizer.encode_written`, or its refusal as a drops.RowError."""
  try:
    return tokenizer.encode_written(text, spans, start=start)
  except ValueError as error:
    return drops.RowError('control_tokens', str(error))


def _encode_turns(
  record: records.Record, prompt: Ids, literal: Sequence[str], tokenizer: Any
) -> Encoded | drops.RowError:
  """A record of which every answer is scored."""
  (text,) = record.completions
  written = record.literal[1] if record.literal else ()
  ids, scored, at = list(prompt), [], 0
  for begin, end in record.scored:
    for first, last, counts in ((at, begin, False), (begin, end, True)):
      start = not ids or tokenizer.starts_after(ids)
      spans = [
        (b - first, e - first) for b, e in written if first <= b and e <= last
      ]
      more = _written(tokenizer, text[first:last], spans, start)
      if isinstance(more, drops.RowError):
        return more
      ids += more
      scored += [counts] * len(more)
    at = end
  literal = (*literal, *(text[begin:end] for begin, end in written))
  return Encoded(prompt, [ids[len(prompt) :]], scored, literal)
