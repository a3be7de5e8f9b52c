"""Rows of a data set: from files, by the data set's rule, to records."""

import hashlib
import json
import pathlib
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

from absl import logging

from dpo_jax import registry
from dpo_jax.chat import conversations, errors, rendering
from dpo_jax.data import drop_report, preferences, records

SPLITS = ('all', 'train', 'test')


class Row(NamedTuple):
  """A row's value, as decoded, and its place: file and line, from 1.

  weight: rows of the data that were merged into it. unread: columns that were
  left in the file.
  """

  value: Any
  file: str
  line: int
  weight: int = 1
  unread: tuple[str, ...] = ()

  def error(self, error: errors.RowError) -> errors.RowError:
    """The error, with the place and weight of this row."""
    error.file, error.row, error.weight = self.file, self.line, self.weight
    return error


class RecordSource(NamedTuple):
  """Records that are still to be read.

  files: (name, local file), all that the records depend on besides the options
  of the source; rows: given how to render messages, the record or the error of
  each row.
  """

  files: tuple[tuple[str, pathlib.Path], ...]
  rows: Callable[[rendering.Render], Iterator[Any]]


Item = Row | errors.RowError | drop_report.OtherSplit
# A row's value -> its value in a shape of records.py; None for a row that an
# option leaves out. RowError for a row that can't be used.
Rule = Callable[[Any], dict | None]
Unread = Callable[[Row], tuple[str, ...]]


def source(
  files: Sequence[tuple[str, Any]],
  read: Callable[[], Iterator[Item]],
  rule: Rule,
  *,
  kind: str,
  split: str = 'all',
  held_out_fraction: float = 0.1,
  grouped: bool = False,
  unread: Unread | None = None,
) -> RecordSource:
  """The rows that `read` gives as records.

  files: (name, local file) that they are read from. unread: as in `convert`.
  split, held_out_fraction: as in `in_split`. grouped: pairs of one prompt are
  one record.
  """
  registry.lookup(records.KINDS, kind, 'kind of record')
  check_split(split, held_out_fraction)

  def parsed(render):
    items = convert(read(), rule, unread)
    if split != 'all':
      items = in_split(items, split, held_out_fraction, kind)
    if grouped:
      items = merge_prompts(items)
    return parse(items, kind, render)

  return RecordSource(tuple(files), parsed)


def convert(
  items: Iterator[Item], rule: Rule, unread: Unread | None = None
) -> Iterator[Item]:
  """Every row in a shape of records.py, by the rule of a data set.

  unread: fields of a row that the rule does not read, and that are reported;
  None where fields that a data set's rule does not read are expected.
  """
  left_out = 0

  def shaped(row):
    value = rule(row.value)
    return row._replace(value=value, unread=unread(row) if unread else ())

  for item in _changed(items, shaped):
    if isinstance(item, Row) and item.value is None:
      left_out += 1
    else:
      yield item
  if left_out:
    logging.info('%d rows were left out, as the options ask.', left_out)


def in_split(
  items: Iterator[Item], split: str, held_out_fraction: float, kind: str
) -> Iterator[Item]:
  """The rows of 'train' or of 'test'.

  A row is in 'test' if the hash of its prompt (`share`) is below
  `held_out_fraction`: all rows of a prompt are in one split, whatever their
  order, file, format and chat template, and a larger fraction holds out the
  same rows and more. Unusable rows are in 'train'. The rows are followed by the
  number of rows in the other split. ValueError if all rows are there.
  """
  found = {'train': 0, 'test': 0}
  for item in items:
    side = 'train'
    if isinstance(item, Row):
      try:
        held_out = share(prompt_of(item.value, kind)) < held_out_fraction
        side = 'test' if held_out else 'train'
      except errors.RowError as error:
        item = item.error(error)
    found[side] += 1
    if split == side:
      yield item
  total = sum(found.values())
  if total and not found[split]:
    raise ValueError(
      f'All {total} rows are on the other side of split={split!r}: rows are '
      'split by their prompts, which may be few. Set held_out_fraction (given: '
      f"{held_out_fraction}), or split='all' with a file of its own for each "
      'split.'
    )
  yield drop_report.OtherSplit(total - found[split])


def check_split(split: str, held_out_fraction: float, known=SPLITS) -> None:
  """ValueError for an unknown split, and for a fraction outside (0, 1)."""
  if split not in known:
    raise registry.unknown('split', split, known)
  if not 0 < held_out_fraction < 1:
    raise ValueError(
      f'held_out_fraction={held_out_fraction}: expected a share of the data, '
      'between 0 and 1.'
    )


def share(text: str) -> float:
  """A hash of the text, uniform in [0, 1)."""
  digest = hashlib.sha256(text.encode('utf-8', 'surrogatepass')).digest()
  return int.from_bytes(digest[:7]) / 256**7


def prompt_of(row: Any, kind: str) -> str:
  """What all rows of a prompt share, as text; RowError if unreadable.

  The prompt of a row in a shape of records.py: its field, or the messages
  before the last one, or all where kind='prompts' and the last is no answer.
  One message of a user is the same prompt as its text. Without a prompt, or
  with an empty one, it is the first answer.
  """
  alone = kind == 'prompts'
  found = (preferences.prompt_of_row if alone else preferences.of_row)(row)
  answers = found.answers or ['']
  prompt, answer = map(conversations.unstored, (found.prompt, answers[0]))
  if not prompt and isinstance(answer, list):
    messages = conversations.checked(answer, 'a completion')
    asked = alone and messages[-1]['role'] != 'assistant'
    prompt = messages if asked else messages[:-1]
  prompt = prompt or answer
  if isinstance(prompt, list):
    prompt = conversations.checked(prompt, 'a prompt')
    if len(prompt) == 1 and prompt[0]['role'] == 'user':
      prompt = prompt[0]['content']
  if isinstance(prompt, str):
    return prompt
  return json.dumps(prompt, sort_keys=True, default=str)


def merge_prompts(items: Iterator[Item]) -> Iterator[Item]:
  """Rows {'prompt', 'chosen', 'rejected'}, those of equal prompts as one row.

  So a prompt is computed once. The result is {'prompt', 'completions',
  'preferences'}, at the place of the prompt's first row: every different answer
  once, and a preference for every pair, in their order. A prompt with one pair
  keeps its row. Answers are text. Unusable rows, pairs of equal answers
  included, come first. The weight of a merged row is its number of pairs. All
  pairs are read before the first row is given: the texts of a split are in
  memory at once (0.3 GB for HH).
  """
  groups: dict[str, list[Row]] = {}
  count = 0
  for pair in items:
    if not isinstance(pair, Row):
      yield pair
    elif pair.value['chosen'] == pair.value['rejected']:
      answer = errors.show(pair.value['chosen'])
      detail = f'chosen and rejected are equal: {answer}'
      yield pair.error(errors.RowError('identical_completions', detail))
    else:
      count += 1
      prompt = pair.value['prompt']
      key = prompt if isinstance(prompt, str) else json.dumps(prompt)
      groups.setdefault(key, []).append(pair)
  logging.info('%d pairs of %d prompts.', count, len(groups))
  for same in groups.values():
    if len(same) == 1:
      yield same[0]
      continue
    pairs = [(x.value['chosen'], x.value['rejected']) for x in same]
    answers = list(dict.fromkeys(answer for pair in pairs for answer in pair))
    place = {answer: i for i, answer in enumerate(answers)}
    value = {
      'prompt': same[0].value['prompt'],
      'completions': answers,
      'preferences': [[place[answer] for answer in pair] for pair in pairs],
    }
    yield same[0]._replace(value=value, weight=len(same))


def parse(
  items: Iterator[Item], kind: str, render: rendering.Render
) -> Iterator[records.Record | errors.RowError | drop_report.OtherSplit]:
  """The record of each row in a shape of records.py."""

  def record(row):
    value, *place = row
    place = zip(('file', 'line', 'weight', 'unread'), place)
    return records.parse(value, kind=kind, render=render, **dict(place))

  return _changed(items, record)


def _changed(
  items: Iterator[Item], change: Callable[[Row], Any]
) -> Iterator[Any]:
  """The items, with every row changed; its RowError takes its place."""
  for item in items:
    if isinstance(item, Row):
      try:
        item = change(item)
      except errors.RowError as error:
        item = item.error(error)
    yield item


def field_of(row: Any, name: str) -> Any:
  """A field that must be there, and not null, or RowError."""
  if isinstance(row, dict) and row.get(name) is None:
    row = conversations.without(row, [name])
  return column_of(row, name)


def column_of(row: Any, name: str) -> Any:
  """A field that must be there, perhaps null, or RowError."""
  if name not in errors.check_object(row):
    fields = ', '.join(row) or 'none'
    raise errors.RowError(
      'missing_field', f'no {name}; fields of the row: {fields}'
    )
  return row[name]


def text_of(row: Any, name: str) -> str:
  """A field that must be there and be text, or RowError."""
  return errors.check_text(field_of(row, name), name)


def list_of(row: Any, name: str) -> list:
  """A field that must be there and be a list, or RowError."""
  return errors.check_list(field_of(row, name), name)


def check_not_blank(answers: Collection[str]) -> None:
  """RowError if any of the answers is white space alone."""
  if not all(answer.strip() for answer in answers):
    raise errors.RowError('empty_completion', 'an answer is blank')


def all_tied(scores: Sequence[Any], kind: str) -> bool:
  """Whether scores prefer nothing, where `kind` compares answers.

  Common in votes, and no fault of the row; supervised tuning and sampling take
  any.
  """
  return kind not in ('sft', 'prompts') and all(s == scores[0] for s in scores)
