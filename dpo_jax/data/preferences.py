"""What a row says of its answers: which there are, and which are better."""

import itertools
import math
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from dpo_jax.chat import conversations, errors, row_texts

Pairs = tuple[tuple[int, int], ...]


class Preferences(NamedTuple):
  """Answers to a prompt, as given, and what the row says of their quality.

  pairs: (winner, loser) indices; order: all compared answers, the best first,
  None where no strict order is known; label: of a single answer; ratings: a
  number for each answer. target: the answer that is neither chosen nor
  rejected. spans: corrected spans of each answer, unchecked; around: the row's
  fields of `row_texts.AROUND`, unchecked. unread: its other fields.
  """

  prompt: Any
  answers: list[Any]
  pairs: Pairs = ()
  order: tuple[int, ...] | None = None
  label: bool | None = None
  ratings: tuple[float, ...] | None = None
  target: int | None = None
  spans: tuple[Any, ...] | None = None
  around: Mapping[str, Any] = types.MappingProxyType({})
  unread: tuple[str, ...] = ()

  def net_wins(self) -> list[int]:
    """Of each answer, how many comparisons it wins less those it loses."""
    wins = [0] * len(self.answers)
    for winner, loser in self.pairs:
      wins[winner] += 1
      wins[loser] -= 1
    return wins


def of_row(row: object) -> Preferences:
  """The preferences in a decoded JSON value; RowError if there are none.

  A field that is null is absent. A field that would change what the row means,
  and has no place in its shape, makes the row unusable.
  """
  row = conversations.present(errors.check_object(row))
  read, parse = SHAPES[_shape(row)]
  return _with_other_fields(parse(row), row, read)


def prompt_of_row(row: object) -> Preferences:
  """The prompt of a row, and its answers if it has any, not compared."""
  row = conversations.present(errors.check_object(row))
  names = ('chosen', 'rejected', 'completion', 'messages')
  answers = [row[name] for name in names if name in row]
  answers += errors.check_list(row.get('completions', []), 'completions')
  if 'prompt' not in row and not answers:
    raise _missing('no prompt', row)
  known = [name for read, _ in SHAPES.values() for name in read]
  return _with_other_fields(Preferences(row.get('prompt'), answers), row, known)


def _with_other_fields(
  found: Preferences, row: dict, read: Sequence[str]
) -> Preferences:
  """With the fields of a row beside those that were read."""
  for name, (harmless, advice) in REFUSED.items():
    if row.get(name, harmless[0]) not in harmless:
      raise errors.RowError(
        'unsupported_field', f'{name} is {errors.show(row[name])}: {advice}'
      )
  known = {*read, *row_texts.AROUND, *REFUSED}
  return found._replace(
    around={n: row[n] for n in row_texts.AROUND if n in row},
    unread=tuple(name for name in row if name not in known),
  )


def _shape(row: dict) -> str:
  *answers, chat, text = SHAPES
  found = [name for name in answers if name in row]
  if len(found) > 1:
    raise errors.RowError(
      'ambiguous', f'fields {" and ".join(found)} exclude each other'
    )
  if found:
    return found[0]
  if chat in row:
    return chat
  if text in row and 'prompt' not in row:
    return text
  forms = {'conversations': 'sharegpt', 'instruction': 'alpaca'}
  raise _missing(
    f'none of {", ".join(SHAPES)}',
    row,
    *(
      f'rows with {name} are read with form={form!r}'
      for name, form in forms.items()
      if name in row
    ),
  )


def _missing(what: str, row: dict, *hints: str) -> errors.RowError:
  given = f'fields of the row: {", ".join(row) or "none"}'
  return errors.RowError('missing_field', '; '.join([what, given, *hints]))


def _pair(row: dict) -> Preferences:
  if 'rejected' not in row:
    raise _missing('no rejected', row)
  names = [n for n in ('chosen', 'rejected', 'target') if n in row]
  spans = tuple(row.get(f'{name}_spans') for name in names)
  return Preferences(
    row.get('prompt'),
    [row[name] for name in names],
    pairs=((0, 1),),
    order=(0, 1),
    target=2 if 'target' in row else None,
    spans=None if spans.count(None) == len(spans) else spans,
  )


def _single(row: dict, name: str) -> Preferences:
  label = row.get('label')
  if label is not None and not isinstance(label, bool):
    raise errors.unexpected(label, 'label must be true or false')
  return Preferences(
    row.get('prompt'), [row[name]], label=label, ratings=_rating(row)
  )


def _rating(row: dict) -> tuple[float, ...] | None:
  """That of a single answer."""
  if 'rating' not in row:
    return None
  _check_numbers([row['rating']], 'rating')
  return (row['rating'],)


def _text(row: dict) -> Preferences:
  # Data sets of texts and their classes have numbers there.
  known = isinstance(row.get('label'), bool)
  label = row['label'] if known else None
  return Preferences('', [row['text']], label=label, ratings=_rating(row))


def _group(row: dict) -> Preferences:
  answers = errors.check_list(row['completions'], 'completions')
  if not answers:
    raise errors.RowError('empty_completion', 'completions is an empty list')
  parsers = {
    'preferences': _from_preferences,
    'scores': _from_scores,
    'ranking': _from_ranking,
  }
  found = [name for name in parsers if name in row]
  if len(found) != 1:
    raise errors.RowError(
      'ambiguous' if found else 'missing_field',
      'completions need exactly one of preferences, scores, ranking; given: '
      f'{", ".join(found) or "none"}',
    )
  values = errors.check_list(row[found[0]], found[0])
  pairs, order = parsers[found[0]](values, len(answers))
  ratings = tuple(values) if found == ['scores'] else None
  return Preferences(row.get('prompt'), answers, pairs, order, ratings=ratings)


def _from_preferences(values: list, n: int) -> tuple[Pairs, None]:
  for value in values:
    if not isinstance(value, list) or len(value) != 2:
      raise errors.unexpected(value, 'a preference is [winner, loser]')
    _check_indices(value, n, 'preferences')
    if value[0] == value[1]:
      raise errors.RowError(
        'identical_completions',
        f'preference {value} compares an answer with itself',
      )
  return tuple((winner, loser) for winner, loser in values), None


def _from_scores(values: list, n: int) -> tuple[Pairs, tuple | None]:
  if len(values) != n:
    raise errors.RowError(
      'wrong_length', f'{len(values)} scores, {n} completions'
    )
  _check_numbers(values, 'score')
  order = tuple(sorted(range(n), key=lambda i: -values[i]))
  pairs = itertools.combinations(order, 2)
  strict = tuple((i, j) for i, j in pairs if values[i] > values[j])
  return strict, order if len(set(values)) == n else None


def _from_ranking(values: list, n: int) -> tuple[Pairs, tuple]:
  _check_indices(values, n, 'ranking')
  if len(set(values)) != len(values):
    raise errors.RowError('repeated_index', f'ranking {errors.show(values)}')
  return tuple(itertools.combinations(values, 2)), tuple(values)


def _check_numbers(values: Sequence[Any], what: str) -> None:
  for value in values:
    if isinstance(value, bool) or not isinstance(value, int | float):
      raise errors.unexpected(value, f'a {what} is a number')
    # An int is finite, and may be too large for isfinite.
    if isinstance(value, float) and not math.isfinite(value):
      raise errors.RowError('non_finite_score', f'{what} {value}')


def _check_indices(values: Sequence[Any], n: int, field: str) -> None:
  for value in values:
    if isinstance(value, bool) or not isinstance(value, int):
      raise errors.unexpected(value, f'{field} holds indices')
    if not 0 <= value < n:
      raise errors.RowError(
        'index_out_of_range', f'{field} holds {value}; completions: {n}'
      )


_PAIR = ('prompt', 'chosen', 'rejected', 'target')
# The field that tells a shape -> the fields that it reads, and how.
SHAPES: dict[str, tuple[tuple[str, ...], Callable[[dict], Preferences]]] = {
  'chosen': ((*_PAIR, 'chosen_spans', 'rejected_spans'), _pair),
  'completions': (
    ('prompt', 'completions', 'preferences', 'scores', 'ranking'),
    _group,
  ),
  'completion': (
    ('prompt', 'completion', 'label', 'rating'),
    lambda row: _single(row, 'completion'),
  ),
  'messages': (
    ('prompt', 'messages', 'label', 'rating'),
    lambda row: _single(row, 'messages'),
  ),
  'text': (('text', 'label', 'rating'), _text),
}

_FORM = "form='alpaca' reads it; or leave it out of columns"
_TEXT_ALONE = 'text alone is read'
_ALL_EQUAL = 'every row weighs the same, and is trained on'
# Fields that would change what a row means: values that do not, and what to do
# about others.
REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
  'instruction': (('',), _FORM),
  'input': (('',), _FORM),
  'history': (([], ''), _FORM),
  'system_prompt': (('',), "name it: columns.system='system_prompt'"),
  'images': (([], ''), _TEXT_ALONE),
  'image': (('',), _TEXT_ALONE),
  'videos': (([], ''), _TEXT_ALONE),
  'audios': (([], ''), _TEXT_ALONE),
  'weight': ((1,), _ALL_EQUAL),
  'loss_weight': ((1,), _ALL_EQUAL),
  'train': ((True,), _ALL_EQUAL),
}
