"""Rows of data files as records of text.

Shapes of a row (a JSON object; fields not named here are ignored):

  {'prompt', 'chosen', 'rejected'}
  {'prompt', 'completions': [...]} and one of
      'preferences': [[winner, loser], ...]   indices into completions
      'scores': [...]                         all pairs of different scores;
                                              a tie is not a preference
      'ranking': [...]                        indices, the best first
  {'prompt', 'completion'}, with 'label': true | false for unpaired methods
  {'text'}                                    the same, with an empty prompt
  {'messages': [...]}                         the last message is the completion

What is made of a row is chosen by `kind`, a key of `KINDS`:

  pairs     every (winner, loser); a ranking or scores give all their pairs
  ranking   one K-tuple, the best first; scores must not tie
  unpaired  one completion and its label
  sft       one completion: the given one, or the preferred one. Among several,
            the one with the most wins less losses, the first of these on ties.
            (The reference repository takes the last chosen answer of a prompt.)

Prompts and completions are text or messages: see messages.py.
"""

import dataclasses
import itertools
import math
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from dpo_jax import registry
from dpo_jax.data import drops, messages

Pairs = tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class Record:
  """A prompt, its completions, and the examples that they form.

  examples: what a batch counts; tuples of indices into `completions`, all of
  the same length: (winner, loser), (i,) or a ranking, the best first. Every
  completion is in one of them.
  label: whether an unpaired completion is desirable; None elsewhere.
  row: line of the file, from 1.
  rendered: the prompt comes from a chat template, so it may hold the
  tokenizer's control tokens.
  """

  prompt: str
  completions: tuple[str, ...]
  examples: tuple[tuple[int, ...], ...]
  label: bool | None = None
  file: str = ''
  row: int = 0
  rendered: bool = False


class Source(NamedTuple):
  """Rows that are still to be read.

  files: (name, local file), all that the rows depend on besides the options of
  the source; rows: given how to render messages, all rows, good and bad.
  """

  files: tuple[tuple[str, pathlib.Path], ...]
  rows: Callable[[messages.Render], Iterator[Record | drops.RowError]]


class _Judged(NamedTuple):
  """Answers to a prompt, as given, and what is known of their merit.

  pairs: (winner, loser) indices; order: all compared answers, the best first,
  None where no strict order is known; label: of a single answer.
  """

  prompt: Any
  answers: list[Any]
  pairs: Pairs = ()
  order: tuple[int, ...] | None = None
  label: bool | None = None


def parse(
  row: object,
  *,
  kind: str,
  render: messages.Render,
  file: str = '',
  line: int = 0,
) -> Record:
  """The record in a decoded JSON value; drops.RowError for an unusable one.

  render: messages -> text, up to where the assistant's answer begins.
  """
  choose = registry.lookup(KINDS, kind, 'kind of record')
  judged = _judge(row)
  examples = choose(judged)
  # Completions in no example must not lengthen the record.
  used = sorted(set(itertools.chain.from_iterable(examples)))
  prompt, answers, rendered = messages.texts(
    judged.prompt, [judged.answers[i] for i in used], render
  )
  place = {old: new for new, old in enumerate(used)}
  examples = tuple(tuple(place[i] for i in e) for e in examples)
  for example in examples:
    if len({answers[i] for i in example}) < len(example):
      raise drops.RowError(
        'identical_completions',
        f'answers compared are equal: {messages.show(answers[example[0]])}',
      )
  label = judged.label if kind == 'unpaired' else None
  return Record(prompt, answers, examples, label, file, line, rendered)


# Judgements: which answers a row has, and which of them are better.


def _judge(row: object) -> _Judged:
  if not isinstance(row, dict):
    raise drops.RowError(
      'not_an_object', f'an object was expected, not {messages.show(row)}'
    )
  found = [name for name in SHAPES if name in row]
  if len(found) > 1:
    raise drops.RowError(
      'ambiguous', f'fields {" and ".join(found)} exclude each other'
    )
  if found:
    return SHAPES[found[0]](row)
  if 'messages' in row:
    return _Judged(row.get('prompt'), [row['messages']])
  if 'text' in row and 'prompt' not in row:
    return _Judged('', [row['text']])
  raise drops.RowError(
    'missing_field',
    f'none of {", ".join(SHAPES)}, messages, text; {_fields(row)}',
  )


def _judge_pair(row: dict) -> _Judged:
  if 'rejected' not in row:
    raise drops.RowError('missing_field', f'no rejected; {_fields(row)}')
  answers = [row['chosen'], row['rejected']]
  return _Judged(row.get('prompt'), answers, ((0, 1),), (0, 1))


def _judge_single(row: dict) -> _Judged:
  label = row.get('label')
  if label is not None and not isinstance(label, bool):
    raise drops.RowError(
      'wrong_type', f'label must be true or false, not {messages.show(label)}'
    )
  return _Judged(row.get('prompt'), [row['completion']], label=label)


def _judge_group(row: dict) -> _Judged:
  answers = _list(row['completions'], 'completions')
  if not answers:
    raise drops.RowError('empty_completion', 'completions is an empty list')
  judges = {
    'preferences': _from_preferences,
    'scores': _from_scores,
    'ranking': _from_ranking,
  }
  found = [name for name in judges if name in row]
  if len(found) != 1:
    reason = 'ambiguous' if found else 'missing_field'
    raise drops.RowError(
      reason,
      'completions need exactly one of preferences, scores, ranking; given: '
      f'{", ".join(found) or "none"}',
    )
  values = _list(row[found[0]], found[0])
  pairs, order = judges[found[0]](values, len(answers))
  return _Judged(row.get('prompt'), answers, pairs, order)


def _from_preferences(values: list, n: int) -> tuple[Pairs, None]:
  for value in values:
    if not isinstance(value, list) or len(value) != 2:
      raise drops.RowError(
        'wrong_type',
        f'a preference is [winner, loser], not {messages.show(value)}',
      )
    _check_indices(value, n, 'preferences')
    if value[0] == value[1]:
      raise drops.RowError(
        'identical_completions', f'preference {value} is of one with itself'
      )
  return tuple((winner, loser) for winner, loser in values), None


def _from_scores(values: list, n: int) -> tuple[Pairs, tuple | None]:
  if len(values) != n:
    raise drops.RowError(
      'wrong_length', f'{len(values)} scores, {n} completions'
    )
  for value in values:
    if isinstance(value, bool) or not isinstance(value, int | float):
      raise drops.RowError(
        'wrong_type', f'score {messages.show(value)} is not a number'
      )
    # An int is finite, and may be too large for isfinite.
    if isinstance(value, float) and not math.isfinite(value):
      raise drops.RowError('non_finite_score', f'score {value}')
  order = tuple(sorted(range(n), key=lambda i: -values[i]))
  pairs = itertools.combinations(order, 2)
  strict = tuple((i, j) for i, j in pairs if values[i] > values[j])
  return strict, order if len(set(values)) == n else None


def _from_ranking(values: list, n: int) -> tuple[Pairs, tuple]:
  _check_indices(values, n, 'ranking')
  if len(set(values)) != len(values):
    raise drops.RowError('repeated_index', f'ranking {messages.show(values)}')
  return tuple(itertools.combinations(values, 2)), tuple(values)


SHAPES: dict[str, Callable[[dict], _Judged]] = {
  'chosen': _judge_pair,
  'completions': _judge_group,
  'completion': _judge_single,
}


# Kinds: which examples are made of the judged answers.


def _pairs(judged: _Judged) -> tuple[tuple[int, ...], ...]:
  if not judged.pairs:
    raise drops.RowError('no_preference', 'no answer is better than another')
  return judged.pairs


def _ranking(judged: _Judged) -> tuple[tuple[int, ...], ...]:
  if judged.order is None or len(judged.order) < 2:
    raise drops.RowError(
      'no_strict_order',
      'a ranking needs two answers or more, and no ties between them',
    )
  return (judged.order,)


def _unpaired(judged: _Judged) -> tuple[tuple[int, ...], ...]:
  if judged.label is None:
    raise drops.RowError(
      'missing_field', 'an unpaired row has the fields completion and label'
    )
  return ((0,),)


def _sft(judged: _Judged) -> tuple[tuple[int, ...], ...]:
  if judged.label is False:
    raise drops.RowError(
      'undesirable', 'label is false: not an answer to be imitated'
    )
  merit = [0] * len(judged.answers)
  for winner, loser in judged.pairs:
    merit[winner] += 1
    merit[loser] -= 1
  ranked = judged.order or range(len(merit))
  return ((max(ranked, key=merit.__getitem__),),)


KINDS: dict[str, Callable[[_Judged], tuple[tuple[int, ...], ...]]] = {
  'pairs': _pairs,
  'ranking': _ranking,
  'unpaired': _unpaired,
  'sft': _sft,
}


def _check_indices(values: Sequence[Any], n: int, field: str) -> None:
  for value in values:
    if isinstance(value, bool) or not isinstance(value, int):
      raise drops.RowError(
        'wrong_type', f'{field} holds {messages.show(value)}, which is no index'
      )
    if not 0 <= value < n:
      raise drops.RowError(
        'index_out_of_range', f'{field} holds {value}; completions: {n}'
      )


def _fields(row: dict) -> str:
  return f'fields of the row: {", ".join(row) or "none"}'


def _list(value: Any, name: str) -> list:
  if not isinstance(value, list):
    raise drops.RowError(
      'wrong_type', f'{name} must be a list, not {messages.show(value)}'
    )
  return value
