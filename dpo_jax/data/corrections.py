"""Which tokens of a pair were corrected (RLHF-V), for weights of tokens.

A data section with kind='pairs' may ask for them:

  corrections='diff'   tokens in which the two answers of a pair differ, by the
                       matching blocks of `difflib.SequenceMatcher` on token ids
  corrections='spans'  tokens that overlap the row's 'chosen_spans' and
                       'rejected_spans': lists of [begin, end), in characters
                       (code points) of the answer's text; of messages, of the
                       last one's content. Spans may overlap; an empty one holds
                       no token.

Both read whole answers, before truncation. EOS is never corrected.
"""

import difflib
from collections.abc import Callable
from typing import Any

from dpo_jax.chat import errors
from dpo_jax.data import records

Ids = list[int]
# (record, ids of the texts of its completions) -> for each of these tokens
# whether it was corrected; errors.RowError where a row does not say.
Mark = Callable[[records.Record, list[Ids]], list[list[bool]]]


def _make_spans(tokenizer: Any) -> Mark:
  """Tokens of which a character is in a span.

  tokenizer: its `vocabulary` gives the offsets of tokens.
  """

  def mark(record: records.Record, answers: list[Ids]) -> list[list[bool]]:
    check_one_pair_each(record)
    return [
      _overlaps(tokenizer.vocabulary, record, c, ids)
      for c, ids in enumerate(answers)
    ]

  return mark


# Tokenizer -> what marks corrected tokens.
CORRECTIONS: dict[str, Callable[[Any], Mark]] = {
  'diff': lambda tokenizer: _diff,
  'spans': _make_spans,
}


def of_tokens(
  marks: list[list[bool]], prompt: Ids, completions: list[Ids]
) -> list[float]:
  """The marks of a record's tokens, in the order of a `TokenRecords`.

  prompt, completions: ids as they are kept: truncated, or with EOS at the end.
  """
  out = [0.0] * len(prompt)
  for mark, ids in zip(marks, completions):
    out += map(float, [*mark, False][: len(ids)])
  return out


def check_one_pair_each(record: records.Record) -> None:
  """RowError for a completion that is in several pairs.

  Its corrected tokens depend on the pair.
  """
  used = [c for example in record.examples for c in example]
  if len(set(used)) < len(used):
    raise errors.RowError(
      'several_pairs',
      f'{len(record.completions)} answers form {len(record.examples)} pairs; '
      'corrections need each answer to be in one',
    )


def _diff(record: records.Record, answers: list[Ids]) -> list[list[bool]]:
  """Tokens that only one of the answers has."""
  check_one_pair_each(record)
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
  """Which tokens of completion `c` overlap its spans."""
  text = record.completions[c]
  content = record.contents[c] if record.contents else text
  spans = record.spans[c] if record.spans else None
  _check_spans(spans, len(content))
  first = _place(content, text) if record.contents else 0
  for start in (False, True):
    found, offsets = vocabulary.offsets(text, start=start)
    if found == ids:
      return [
        any(max(begin, a + first) < min(end, b + first) for a, b in spans)
        for begin, end in offsets
      ]
  raise errors.RowError(
    'no_offsets', 'the tokenizer gives no offsets for the ids that it gives'
  )


def _place(content: str, text: str) -> int:
  """Where a message's content begins in the text of it, perhaps trimmed."""
  if content.strip() not in text:
    raise errors.RowError('no_offsets', 'the template has changed the answer')
  # The reasoning before the answer may contain the same words.
  return text.rindex(content.strip()) - (len(content) - len(content.lstrip()))


def _check_spans(spans: Any, length: int) -> None:
  """RowError unless they are spans of a text of `length` characters."""
  if spans is None:
    raise errors.RowError(
      'missing_field',
      "corrections='spans' needs chosen_spans and rejected_spans",
    )
  if not isinstance(spans, list):
    raise errors.unexpected(spans, 'spans must be a list', 'bad_span')
  for span in spans:
    if not (
      isinstance(span, list)
      and len(span) == 2
      and all(type(place) is int for place in span)
    ):
      raise errors.unexpected(span, 'a span is [begin, end)', 'bad_span')
    if not 0 <= span[0] <= span[1] <= length:
      raise errors.RowError(
        'bad_span', f'span {span} of an answer of {length} characters'
      )
