"""What a row says of its answers: which there are, and which are better."""

import itertools
import math
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from dpo_jax.data import conversations, drops, messages

Pairs = tuple[tuple[int, int], ...]


class Judged(NamedTuple):
  """Answers to a prompt, as given, and what is known of their merit.

  pairs: (winner, loser) indices; order: all compared answers, the best first,
  None where no strict order is known; label: of a single answer. target: the
  answer that is neither chosen nor rejected. spans: what the row has as the
  spans of each answer, unchecked; around: what it has of `messages.AROUND`,
  unchecked. unread: its other fields.
  """

  prompt: Any
  answers: list[Any]
  pairs: Pairs = ()
  order: tuple[int, ...] | None = None
  label: bool | None = None
  target: int | None = None
  spans: tuple[Any, ...] | None = None
  around: Mapping[str, Any] = types.MappingProxyType({})
  unread: tuple[str, ...] = ()

  def merits(self) -> list[int]:
    """Of each answer, how many comparisons it wins less those it loses."""
    merits = [0] * len(self.answers)
    for winner, loser in self.pairs:
      merits[winner] += 1
      merits[loser] -= 1
    return merits


def judge(row: object) -> Judged:
  """What a decoded JSON value says; drops.RowError if it says nothing.

  A field that is null is not there. One that would change what the row means,
  and has no place in its shape, makes it unusable.
  """
  if not isinstance(row, dict):
    raise drops.RowError(
      'not_an_object', f'an object was expected, not {messages.show(row)}'
    )
  row = conversations.present(row)
  read, judged = SHAPES[_shape(row)]
  return _beside(judged(row), row, read)


def question(row: object) -> Judged:
  """The prompt of a row, and the answers that it may have, unjudged."""
  if not isinstance(row, dict):
    raise drops.RowError(
      'not_an_object', f'an object was expected, not {messages.show(row)}'
    )
  row = conversations.present(row)
  names = ('chosen', 'rejected', 'completion', 'messages')
  answers = [row[name] for name in names if name in row]
  answers += _list(row.get('completions', []), 'completions')
  if 'prompt' not in row and not answers:
    raise drops.RowError('missing_field', f'no prompt; {_fields(row)}')
  known = [name for read, _ in SHAPES.values() for name in read]
  return _beside(Judged(row.get('prompt'), answers), row, known)


def _beside(judged: Judged, row: dict, read: Sequence[str]) -> Judged:
  """With what stands beside the fields that were read."""
  for name, (harmless, advice) in REFUSED.items():
    if row.get(name, harmless[0]) not in harmless:
      raise drops.RowError(
        'unsupported_field', f'{name} is {messages.show(row[name])}: {advice}'
      )
  known = {*read, *messages.AROUND, *REFUSED}
  return judged._replace(
    around={n: row[n] for n in messages.AROUND if n in row},
    unread=tuple(name for name in row if name not in known),
  )


def _shape(row: dict) -> str:
  *answers, chat, text = SHAPES
  found = [name for name in answers if name in row]
  if len(found) > 1:
    raise drops.RowError(
      'ambiguous', f'fields {" and ".join(found)} exclude each other'
    )
  if found:
    return found[0]
  if chat in row:
    return chat
  if text in row and 'prompt' not in row:
    return text
  forms = {'conversations': 'sharegpt', 'instruction': 'alpaca'}
  hint = ''.join(
    f'; rows with {name} are read with form={form!r}'
    for name, form in forms.items()
    if name in row
  )
  raise drops.RowError(
    'missing_field', f'none of {", ".join(SHAPES)}; {_fields(row)}{hint}'
  )


def _judge_pair(row: dict) -> Judged:
  if 'rejected' not in row:
    raise drops.RowError('missing_field', f'no rejected; {_fields(row)}')
  names = ('chosen', 'rejected', 'target')
  answers = [row[name] for name in names if name in row]
  target = 2 if 'target' in row else None
  spans = tuple(row.get(f'{name}_spans') for name in names[: len(answers)])
  return Judged(
    row.get('prompt'),
    answers,
    pairs=((0, 1),),
    order=(0, 1),
    target=target,
    spans=None if spans.count(None) == len(spans) else spans,
  )


def _judge_single(row: dict) -> Judged:
  return Judged(row.get('prompt'), [row['completion']], label=_label(row))


def _judge_messages(row: dict) -> Judged:
  return Judged(row.get('prompt'), [row['messages']], label=_label(row))


def _judge_text(row: dict) -> Judged:
  # Sets of texts and their classes have numbers there.
  known = isinstance(row.get('label'), bool)
  return Judged('', [row['text']], label=row['label'] if known else None)


def _label(row: dict) -> bool | None:
  label = row.get('label')
  if label is None or isinstance(label, bool):
    return label
  raise drops.RowError(
    'wrong_type', f'label must be true or false, not {messages.show(label)}'
  )


def _judge_group(row: dict) -> Judged:
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
  return Judged(row.get('prompt'), answers, pairs, order)


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


# The field that tells a shape -> the fields that it reads, and what they say.
SHAPES: dict[str, tuple[tuple[str, ...], Callable[[dict], Judged]]] = {
  'chosen': (
    (
      'prompt',
      'chosen',
      'rejected',
      'target',
      'chosen_spans',
      'rejected_spans',
    ),
    _judge_pair,
  ),
  'completions': (
    ('prompt', 'completions', 'preferences', 'scores', 'ranking'),
    _judge_group,
  ),
  'completion': (('prompt', 'completion', 'label'), _judge_single),
  'messages': (('prompt', 'messages', 'label'), _judge_messages),
  'text': (('text', 'label'), _judge_text),
}

_FORM = "form='alpaca' reads it; or leave it out of columns"
_PIXELS = 'text alone is read'
_ALL_EQUAL = 'every row weighs the same, and is trained on'
# Fields that would change what a row means: the values that do not, and what
# to do about the others.
REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
  'instruction': (('',), _FORM),
  'input': (('',), _FORM),
  'history': (([], ''), _FORM),
  'system_prompt': (('',), "name it: columns.system='system_prompt'"),
  'images': (([], ''), _PIXELS),
  'image': (('',), _PIXELS),
  'videos': (([], ''), _PIXELS),
  'audios': (([], ''), _PIXELS),
  'weight': ((1,), _ALL_EQUAL),
  'loss_weight': ((1,), _ALL_EQUAL),
  'train': ((True,), _ALL_EQUAL),
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
