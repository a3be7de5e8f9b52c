"""Which tokens of a pair were corrected, for weights that depend on it.

A data section with kind='pairs' may ask for them:

  segments='diff'   tokens in which the two answers of a pair differ, by the
                    matching blocks of `difflib.SequenceMatcher` on token ids
  segments='spans'  tokens that overlap the row's 'chosen_spans' and
                    'rejected_spans': lists of [begin, end), in characters (code
                    points) of the answer's text; for messages, of the last
                    one's. They may overlap; an empty one holds no token.

Both look at whole answers, whatever is cut off later. EOS is never corrected.
"""

import difflib
from collections.abc import Callable
from typing import Any

from dpo_jax.data import drops, messages, records

Ids = list[int]
# (record, ids of the texts of its completions) -> for each of these tokens
# whether it was corrected; drops.RowError where a row does not say.
Mark = Callable[[records.Record, list[Ids]], list[list[bool]]]


def make_diff(tokenizer: Any) -> Mark:
  """Tokens that only one of the answers has."""
  del tokenizer
  return _diff


def make_spans(tokenizer: Any) -> Mark:
  """Tokens of which a character is in a span.

  tokenizer: its `vocabulary` gives the offsets of tokens.
  """

  def mark(record: records.Record, answers: list[Ids]) -> list[list[bool]]:
    check_once(record)
    return [
      _overlaps(tokenizer.vocabulary, record, c, ids)
      for c, ids in enumerate(answers)
    ]

  return mark


SEGMENTS: dict[str, Callable[[Any], Mark]] = {
  'diff': make_diff,
  'spans': make_spans,
}


def extend(
  marks: list[list[bool]], prompt: Ids, completions: list[Ids]
) -> list[float]:
  """The marks of a record's tokens, in the order of a `TokenRecords`.

  prompt, completions: ids as they are kept: cut, or with EOS at the end.
  """
  out = [0.0] * len(prompt)
  for mark, ids in zip(marks, completions):
    out += map(float, [*mark, False][: len(ids)])
  return out


def check_once(record: records.Record) -> None:
  """drops.RowError for a completion that is in several examples.

  What was corrected in it depends on what it is compared with.
  """
  used = [c for example in record.examples for c in example]
  if len(set(used)) < len(used):
    raise drops.RowError(
      'several_pairs',
      f'{len(record.completions)} answers form {len(record.examples)} pairs; '
      'segments need each answer to be in one',
    )


def _diff(record: records.Record, answers: list[Ids]) -> list[list[bool]]:
  check_once(record)
  marks = [[True] * len(ids) for ids in answers]
  for a, b in record.examples:
    matcher = difflib.SequenceMatcher(
      None, answers[a], answers[b], autojunk=False
    )
    for i, j, size in matcher.get_matching_blocks():
      marks[a][i : i + size] = [False] * size
      marks[b][j : j + size] = [False] * size
  return marks


def _overlaps(
  vocabulary: Any, record: records.Record, c: int, ids: Ids
) -> list[bool]:
  text = record.completions[c]
  said = record.contents[c] if record.contents else text
  spans = _checked(record.spans[c] if record.spans else None, len(said))
  first = _place(said, text) if record.contents else 0
  for start in (False, True):
    found, offsets = vocabulary.offsets(text, start=start)
    if found == ids:
      return [
        any(max(begin, a + first) < min(end, b + first) for a, b in spans)
        for begin, end in offsets
      ]
  raise drops.RowError(
    'no_offsets', 'the tokenizer gives no offsets for the ids that it gives'
  )


def _place(said: str, text: str) -> int:
  """Where a message begins in what a template, which may trim it, wrote."""
  if said.strip() not in text:
    raise drops.RowError('no_offsets', 'the template has changed the answer')
  # A thought before it may say the same.
  return text.rindex(said.strip()) - (len(said) - len(said.lstrip()))


def _checked(spans: Any, length: int) -> list[list[int]]:
  """The spans of a text of so many characters."""
  if spans is None:
    raise drops.RowError(
      'missing_field', "segments='spans' needs chosen_spans and rejected_spans"
    )
  if not isinstance(spans, list):
    raise drops.RowError(
      'bad_span', f'spans must be a list, not {messages.show(spans)}'
    )
  for span in spans:
    if (
      not isinstance(span, list)
      or len(span) != 2
      or not all(type(at) is int for at in span)
    ):
      raise drops.RowError(
        'bad_span', f'a span is [begin, end), not {messages.show(span)}'
      )
    if not 0 <= span[0] <= span[1] <= length:
      raise drops.RowError(
        'bad_span', f'span {span} of an answer of {length} characters'
      )
  return spans
