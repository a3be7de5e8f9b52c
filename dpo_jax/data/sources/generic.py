"""Anybody's files: JSON lines, JSON arrays and Parquet."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dpo_jax import registry
from dpo_jax.data import judgements, records, rows
from dpo_jax.data.sources import files, forms, reading

SUFFIXES = ('.jsonl', '.jsonl.gz', '.json', '.json.gz')


def jsonl(
  *,
  path: str | os.PathLike | Sequence[str],
  kind: str = 'pairs',
  files: str | None = None,
  form: str = 'records',
  columns: Mapping[str, str] | None = None,
  split: str = 'all',
  held_out_fraction: float = 0.1,
) -> records.Source:
  """Rows of files with one JSON object a line, or one array of them.

  path: a URI of assets.py, a local glob, or a list of these, read in the order
  given. Files end in '.jsonl', '.json', or one of them with '.gz'; a glob gives
  those of its files that do, in the order of their names.
  kind: a key of `records.KINDS`.
  files: where `path` is a directory or a repository of the hub, a glob for the
  files to read, such as 'data/train*'.
  form: a key of `forms.FORMS`: whose fields a row has, by default those of
  records.py.
  columns: field of the form -> the name that it has in the file, for all that
  are to be read, such as dict(prompt='question', completion='answer'); None
  where they have the names that the form gives them.
  split: 'train' or 'test' by the prompts, see splits.py; 'all' for every row.
  held_out_fraction: of the prompts, in 'test'.
  """
  return _source(
    path,
    SUFFIXES,
    files,
    form,
    columns,
    kind=kind,
    split=split,
    held_out_fraction=held_out_fraction,
  )


def parquet(
  *,
  path: str | os.PathLike | Sequence[str],
  kind: str = 'pairs',
  files: str | None = None,
  form: str = 'records',
  columns: Mapping[str, str] | None = None,
  split: str = 'all',
  held_out_fraction: float = 0.1,
) -> records.Source:
  """Rows of Parquet files; the options are those of `jsonl`.

  Only the columns that the form knows, or those that `columns` names, are read,
  a few rows at a time.
  """
  return _source(
    path,
    ('.parquet',),
    files,
    form,
    columns,
    kind=kind,
    split=split,
    held_out_fraction=held_out_fraction,
  )


def rule_of(
  form: str, columns: Mapping[str, str] | None
) -> tuple[Callable[[Any], dict | None], Callable[[rows.Row], tuple[str, ...]]]:
  """(rule, unread) of `rows.convert`, for rows of a form with these names."""
  fields, rule = registry.lookup(forms.FORMS, form, 'form of rows')
  if columns is None:
    # Fields of records.py are no fields of another form.
    known, _ = forms.FORMS['records']
    others = [name for name in known if name not in fields]
    return rule, lambda row: (
      *row.unread,
      *(n for n in others if row.value.get(n) is not None),
    )
  if not columns:
    raise ValueError(f'columns names none of {", ".join(fields)}.')
  for field in columns:
    if field not in fields:
      raise registry.unknown('field in columns', field, fields)

  def renamed(row):
    # A column that is null in a row is there.
    return rule({f: rows.column_of(row, name) for f, name in columns.items()})

  def unread(row):
    read = columns.values()
    others = (
      n for n, v in row.value.items() if n not in read and v is not None
    )
    return (*row.unread, *others)

  return renamed, unread


def _source(path, suffixes, inside, form, columns, **options) -> records.Source:
  rule, unread = rule_of(form, columns)
  fields, _ = forms.FORMS[form]
  wanted = files.Columns(optional=(*fields, *judgements.REFUSED))
  if columns is not None:
    wanted = files.Columns(required=tuple(columns.values()))
  found = files.find(path, suffixes, inside)
  return reading.source(found, rule, columns=wanted, unread=unread, **options)
