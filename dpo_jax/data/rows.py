"""Rows of a data set on their way to records: what was read, and from where."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from absl import logging

from dpo_jax.data import drops, messages, records


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


Item = Row | drops.RowError | drops.Elsewhere


def convert(
  rows: Iterator[Item],
  rule: Callable[[Any], dict | None],
  unread: Callable[[Row], tuple[str, ...]] = lambda row: (),
) -> Iterator[Item]:
  """Every row in one of the shapes of records.py, by the rule of a data set.

  rule: a row's value -> the value in that shape; None for one that an option
  leaves out; drops.RowError for one that cannot be used. unread: fields of a
  row that the rule does not read and that are worth a word.
  """
  left_out = 0
  for row in rows:
    if isinstance(row, Row):
      try:
        value = rule(row.value)
      except drops.RowError as error:
        yield placed(error, row)
        continue
      if value is None:
        left_out += 1
        continue
      row = row._replace(value=value, unread=unread(row))
    yield row
  if left_out:
    logging.info('%d rows were left out, as the options ask.', left_out)


def parse(
  rows: Iterator[Item], kind: str, render: messages.Render
) -> Iterator[records.Record | drops.RowError]:
  """The record of each row in a shape of records.py."""
  for row in rows:
    if isinstance(row, Row):
      try:
        record = records.parse(
          row.value,
          kind=kind,
          render=render,
          file=row.file,
          line=row.line,
          weight=row.weight,
        )
        unread = (*row.unread, *record.unread)
        yield dataclasses.replace(record, unread=unread)
      except drops.RowError as error:
        yield placed(error, row)
    else:
      yield row


def placed(error: drops.RowError, row: Row) -> drops.RowError:
  """The error, of all of the row, with its place."""
  error.file, error.row, error.weight = row.file, row.line, row.weight
  return error


def text_of(row: Any, name: str) -> str:
  """A field that must be there and be text, or drops.RowError."""
  return as_text(field_of(row, name), name)


def as_text(value: Any, name: str) -> str:
  """The value of a field, if it is text, or drops.RowError."""
  if not isinstance(value, str):
    raise drops.RowError(
      'wrong_type', f'{name} is no text: {messages.show(value)}'
    )
  return value


def field_of(row: Any, name: str) -> Any:
  """A field that must be there, and not null, or drops.RowError."""
  if isinstance(row, dict) and row.get(name) is None:
    row = {k: v for k, v in row.items() if k != name}
  return column_of(row, name)


def column_of(row: Any, name: str) -> Any:
  """A field that must be there, perhaps as a null, or drops.RowError."""
  if not isinstance(row, dict):
    raise drops.RowError(
      'not_an_object', f'an object was expected, not {messages.show(row)}'
    )
  if name not in row:
    fields = ', '.join(row) or 'none'
    raise drops.RowError(
      'missing_field', f'no {name}; fields of the row: {fields}'
    )
  return row[name]
