"""Anybody's files: JSON lines and Parquet."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dpo_jax import registry
from dpo_jax.data import records, rows
from dpo_jax.data.sources import files, reading

# What records.py reads of a row.
FIELDS = (
  'prompt',
  'chosen',
  'rejected',
  'target',
  'chosen_spans',
  'rejected_spans',
  'completions',
  'preferences',
  'scores',
  'ranking',
  'completion',
  'label',
  'messages',
  'text',
  'tools',
)


def jsonl(
  *,
  path: str | os.PathLike | Sequence[str],
  kind: str = 'pairs',
  files: str | None = None,
  columns: Mapping[str, str] | None = None,
  split: str = 'all',
  held_out_fraction: float = 0.1,
) -> records.Source:
  """Rows of files with one JSON object a line, in the shapes of records.py.

  path: a URI of assets.py, a local glob, or a list of these, read in the order
  given. Files end in '.jsonl' or '.jsonl.gz'; a glob gives those of its files
  that do, in the order of their names.
  kind: a key of `records.KINDS`.
  files: where `path` is a directory or a repository of the hub, a glob for the
  files to read, such as 'data/train*'.
  columns: field of records.py -> the name that it has in the file, for all that
  are to be read, such as dict(prompt='question', completion='answer'); None
  where they have the names that records.py gives them.
  split: 'train' or 'test' by the prompts, see splits.py; 'all' for every row.
  held_out_fraction: of the prompts, in 'test'.
  """
  return _source(
    path,
    ('.jsonl', '.jsonl.gz'),
    files,
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
  columns: Mapping[str, str] | None = None,
  split: str = 'all',
  held_out_fraction: float = 0.1,
) -> records.Source:
  """Rows of Parquet files; the options are those of `jsonl`.

  Only the columns that records.py knows, or those that `columns` names, are
  read, a few rows at a time. A null is a field that is not there.
  """
  return _source(
    path,
    ('.parquet',),
    files,
    columns,
    kind=kind,
    split=split,
    held_out_fraction=held_out_fraction,
  )


def rule_of(
  columns: Mapping[str, str] | None,
) -> Callable[[Any], dict | None]:
  """Rule of `rows.convert` that gives columns the names of records.py."""
  if columns is None:
    return lambda row: row
  if not columns:
    raise ValueError(f'columns names none of {", ".join(FIELDS)}.')
  for field in columns:
    if field not in FIELDS:
      raise registry.unknown('field in columns', field, FIELDS)
  return lambda row: {
    field: rows.field_of(row, name) for field, name in columns.items()
  }


def _source(path, suffixes, inside, columns, **options) -> records.Source:
  rule = rule_of(columns)
  wanted = files.Columns(optional=FIELDS)
  if columns is not None:
    wanted = files.Columns(required=tuple(columns.values()))
  found = files.find(path, suffixes, inside)
  return reading.source(found, rule, columns=wanted, **options)
