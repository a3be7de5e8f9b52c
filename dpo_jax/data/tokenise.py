"""Records of text to records of tokens, by the rules of token_rules.py."""

import array
import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import tqdm

from dpo_jax.chat import control_tokens, errors
from dpo_jax.data import corrections, drop_report, records, store, token_rules

Ids = list[int]
Item = records.Record | errors.RowError | drop_report.OtherSplit

# Records encoded at a time: enough to keep every core of the encoder busy.
CHUNK = 1024


def tokenise(
  items: Iterable[Item],
  tokenizer: Any,
  rules: token_rules.TokenRules,
  mark: corrections.Mark | None = None,
) -> tuple[store.TokenRecords, drop_report.DropReport]:
  """Tokens of all usable records, in their order, and what was dropped.

  tokenizer: as in `encode`. mark: which tokens are 1 in extras['corrected'],
  f32[tokens]; None for no such extra.
  Raises ValueError if examples do not all compare equally many completions.
  """
  report = drop_report.DropReport()
  builder = store.Builder()
  corrected = array.array('f')
  bar = iter(tqdm.tqdm(items, desc='tokenising', unit=' rows', disable=None))
  while chunk := list(itertools.islice(bar, CHUNK)):
    good = [item for item in chunk if isinstance(item, records.Record)]
    encoded = iter(encode(good, tokenizer, tokens=rules.recognises))
    for item in chunk:
      if isinstance(item, drop_report.OtherSplit):
        report.other_split += item.count
        continue
      report.read += item.weight
      if isinstance(item, errors.RowError):
        report.add(item)
        continue
      found = next(encoded)
      try:
        if isinstance(found, errors.RowError):
          raise found
        report.note(item, found.literal)
        if mark is None and item.spans:
          report.unread['spans'] += item.weight
        kept = token_rules.fit(item, found, rules)
        answers = [found.completions[place] for place in kept.places]
        marks = mark(kept.record, answers) if mark else None
      except errors.RowError as e:
        e.file, e.row = item.file, item.row
        e.weight = item.weight - sum(x.weight for x in item.lost)
        report.add(*item.lost, e)
        continue
      report.add(*kept.record.lost)
      builder.add(kept.record, kept.prompt, kept.completions, found.scored)
      if marks is not None:
        corrected.extend(
          corrections.of_tokens(marks, kept.prompt, kept.completions)
        )
  tokens = builder.finish()
  if mark:
    extras = {'corrected': np.asarray(corrected, np.float32)}
    tokens = dataclasses.replace(tokens, extras=extras)
  return tokens, report


def encode(
  items: Sequence[records.Record], tokenizer: Any, *, tokens: bool = False
) -> Iterator[token_rules.Encoded | errors.RowError]:
  """The ids of each record, or why it has none.

  tokenizer: its `encode_parts`, `encode_written`, `control_pattern` and
  `starts_after` are used. tokens: whether control tokens in a prompt that no
  template rendered are tokens.
  """
  literal = [
    () if tokens else _literal_spans(item, tokenizer.control_pattern)
    for item in items
  ]
  texts = ['' if spans else x.prompt for x, spans in zip(items, literal)]
  prompts = list(tokenizer.encode_parts(texts, start=True))
  for i, spans in enumerate(literal):
    if spans:
      prompts[i] = _encode_literal(tokenizer, items[i].prompt, spans, True)
  # After an empty prompt, the completion is the start of the text.
  starts = [
    isinstance(ids, errors.RowError) or not ids or tokenizer.starts_after(ids)
    for ids in prompts
  ]
  texts = {True: [], False: []}
  for item, start in zip(items, starts):
    texts[start] += item.completions if item.scored is None else ()
  encoded = {
    start: iter(tokenizer.encode_parts(part, start=start))
    for start, part in texts.items()
  }
  for item, prompt, spans, start in zip(items, prompts, literal, starts):
    found = tuple(item.prompt[begin:end] for begin, end in spans)
    if item.scored is None:
      ids = list(itertools.islice(encoded[start], len(item.completions)))
    if isinstance(prompt, errors.RowError):
      yield prompt
    elif item.scored is None:
      yield token_rules.Encoded(prompt, ids, None, found)
    else:
      yield _encode_turns(item, prompt, found, tokenizer)


def _literal_spans(
  record: records.Record, pattern: Any
) -> tuple[control_tokens.Span, ...]:
  """Where the prompt holds control tokens that no template wrote."""
  if record.rendered:
    return record.literal[0] if record.literal else ()
  return tuple(match.span() for match in pattern.finditer(record.prompt))


def _encode_literal(
  tokenizer: Any, text: str, spans: Sequence[control_tokens.Span], start: bool
) -> Ids | errors.RowError:
  """Ids of a text in which the control tokens at `spans` are characters."""
  try:
    return tokenizer.encode_written(text, spans, start=start)
  except ValueError as error:
    return errors.RowError('control_tokens', str(error))


def _encode_turns(
  record: records.Record, prompt: Ids, literal: Sequence[str], tokenizer: Any
) -> token_rules.Encoded | errors.RowError:
  """A record of which every answer is scored."""
  (text,) = record.completions
  spans = record.literal[1] if record.literal else ()
  ids, scored, at = list(prompt), [], 0
  for begin, end in record.scored:
    for first, last, is_scored in ((at, begin, False), (begin, end, True)):
      start = not ids or tokenizer.starts_after(ids)
      inside = [
        (b - first, e - first) for b, e in spans if first <= b and e <= last
      ]
      more = _encode_literal(tokenizer, text[first:last], inside, start)
      if isinstance(more, errors.RowError):
        return more
      ids += more
      scored += [is_scored] * len(more)
    at = end
  literal = (*literal, *(text[begin:end] for begin, end in spans))
  return token_rules.Encoded(prompt, [ids[len(prompt) :]], scored, literal)
