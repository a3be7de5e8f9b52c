"""Files of the user: JSON lines, JSON arrays and Parquet."""

import os
from collections.abc import Callable, Mapping, Sequence

from dpo_jax import assets
from dpo_jax.data import preferences
from dpo_jax.data.sources import files as files_lib
from dpo_jax.data.sources import row_formats, rows

SUFFIXES = ('.jsonl', '.jsonl.gz', '.json', '.json.gz')


def _make(suffixes: tuple[str, ...]) -> Callable[..., rows.RecordSource]:
  def source(
    *,
    path: str | os.PathLike | Sequence[str],
    kind: str = 'pairs',
    files: str | None = None,
    form: str = 'records',
    columns: Mapping[str, str] | None = None,
    split: str = 'all',
    held_out_fraction: float = 0.1,
  ) -> rows.RecordSource:
    """Rows of files: JSON objects, one a line or in an array, or Parquet.

    path: a URI (assets/uris.py), a local glob, or a list of these, read in the
    order given. Files of 'jsonl' end in '.jsonl', '.json', or one of them with
    '.gz', those of 'parquet' in '.parquet'; a glob gives those of its files
    that do, in the order of their names.
    kind: a key of `records.KINDS`.
    files: where `path` is a directory or a repository of the hub, a glob for
    the files to read, such as 'data/train*'.
    form: a key of `row_formats.FORMS`: the fields of a row, by default those of
    records.py.
    columns: field of the form -> the name that it has in the file, for all
    fields to be read, such as dict(prompt='question', completion='answer');
    None where they have the names of the form. Only columns that are named, or
    that the form knows, are read of a Parquet file.
    split: 'train' or 'test' by the prompts, see `rows.in_split`; 'all' for
    every row. held_out_fraction: of the prompts, in 'test'.
    """
    rule, unread = row_formats.rule_of(form, columns)
    fields, _ = row_formats.FORMS[form]
    wanted = files_lib.Columns(optional=(*fields, *preferences.REFUSED))
    if columns is not None:
      wanted = files_lib.Columns(required=tuple(columns.values()))
    return files_lib.source(
      assets.find_files(path, suffixes, files),
      rule,
      kind=kind,
      columns=wanted,
      split=split,
      held_out_fraction=held_out_fraction,
      unread=unread,
    )

  return source


jsonl = _make(SUFFIXES)
parquet = _make(('.parquet',))
