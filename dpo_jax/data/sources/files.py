"""Files of rows: which a path stands for, and the rows that they hold.

.jsonl, .json       one JSON object a line, or one array of them; .gz too
.parquet            read by row groups, the needed columns alone
"""

import glob
import gzip
import json
import os
import pathlib
import zlib
from collections.abc import Collection, Iterator, Sequence
from typing import IO, Any, NamedTuple

from dpo_jax import assets, registry
from dpo_jax.chat import errors
from dpo_jax.data.sources import rows

# (name, local file).
File = tuple[str, pathlib.Path]

# Rows of a Parquet file decoded at a time.
_CHUNK = 1024
_BOM = b'\xef\xbb\xbf'
# Bytes in which a file shows whether it is an array.
_FIRST = 1024


class Columns(NamedTuple):
  """Columns to read of a Parquet file.

  required: columns that must be there; optional: those read where they are, of
  which there must be one if none is required.
  """

  required: Sequence[str] = ()
  optional: Sequence[str] = ()


def source(
  found: Sequence[File],
  rule: rows.Rule,
  *,
  columns: Sequence[str] | Columns,
  **options: Any,
) -> rows.RecordSource:
  """The rows of files as records.

  columns: of Parquet files; a plain sequence is of required ones. options: of
  `rows.source`.
  """
  if not isinstance(columns, Columns):
    columns = Columns(columns)
  check_columns(found, columns)
  return rows.source(found, lambda: read(found, columns), rule, **options)


def find(
  path: str | os.PathLike | Sequence[str],
  suffixes: tuple[str, ...],
  inside: str | None = None,
) -> list[File]:
  """The files that a path stands for, in order; each once.

  path: a URI of assets.py, a local glob, or a list of these. Files end with one
  of `suffixes`; a glob gives those of its files that do, in the order of their
  names. inside: a glob for the files of a directory, such as
  'data/train-*.parquet'; None where `path` names files.
  """
  given = [path] if isinstance(path, str | os.PathLike) else path
  files = [f for uri in given for f in _find(str(uri), suffixes, inside)]
  if not files:
    raise ValueError('path is an empty list; expected a file, glob or URI.')
  names = [name for name, _ in files]
  for name in names:
    if names.count(name) > 1:
      raise ValueError(f'path gives {name!r} twice: its rows would repeat.')
  return files


def inside(uri: str, folder: pathlib.Path, pattern: str) -> list[File]:
  """The files of a directory that a glob matches, in the order of names."""
  found = sorted(p for p in folder.glob(pattern) if p.is_file())
  return [(f'{uri}/{p.relative_to(folder).as_posix()}', p) for p in found]


def listing(folder: pathlib.Path) -> str:
  """What a directory holds, as a sentence."""
  names = sorted(p.name + '/' * p.is_dir() for p in folder.iterdir())
  more = f' and {len(names) - 10} more' if len(names) > 10 else ''
  held = f'{", ".join(names[:10])}{more}' if names else 'nothing'
  return f'{str(folder)!r} holds {held}.'


def read(files: Sequence[File], columns: Columns) -> Iterator[rows.Item]:
  """Every row of the files: JSON values, and dicts of a Parquet file's columns.

  Lines count from 1, and so do the rows of a Parquet file and of an array.
  ValueError for a damaged file.
  """
  for name, path in files:
    if path.name.endswith('.parquet'):
      yield from _parquet_rows(name, path, columns)
    else:
      yield from _json_rows(name, path)


def check_columns(files: Sequence[File], columns: Columns) -> None:
  """ValueError for a Parquet file without the columns; reads its footer."""
  for name, path in files:
    if path.name.endswith('.parquet'):
      with _opened(name, path) as file:
        _chosen(name, file.schema_arrow.names, columns)


def _find(uri: str, suffixes: tuple[str, ...], within: str | None):
  expected = ' or '.join(suffixes)
  if '://' not in uri and glob.has_magic(uri) and not os.path.exists(uri):
    paths = glob.glob(os.path.expanduser(uri), recursive=True)
    found = [(p, pathlib.Path(p)) for p in sorted(paths)]
    missing = f'No {expected} file matches {uri!r}. {_nearby(uri)}'
  else:
    file = assets.resolve(uri)
    if not file.is_dir():
      _check_file(uri, file, suffixes, within)
      return [(uri, file)]
    if within is None:
      raise ValueError(
        f'{uri!r} is a directory; expected a file or a glob, or which of its '
        f"files to read, such as files='**/*{suffixes[0]}'. {listing(file)}"
      )
    found = inside(uri, file, within)
    missing = f'No {expected} file of {uri!r} matches {within!r}. '
    missing += listing(file)
  found = [f for f in found if f[0].endswith(suffixes)]
  if not found:
    raise FileNotFoundError(missing)
  return found


def _check_file(uri, file, suffixes, within) -> None:
  if within is not None:
    raise ValueError(
      f'{uri!r} is a file; files={within!r} chooses among those of a directory.'
    )
  if not file.name.endswith(suffixes):
    raise ValueError(f'{uri!r} does not end with {" or ".join(suffixes)}.')


def _nearby(pattern: str) -> str:
  """What the deepest existing directory of a glob holds."""
  folder = pathlib.Path(pattern).expanduser().absolute()
  while glob.has_magic(str(folder)) or not folder.is_dir():
    folder = folder.parent
  return listing(folder)


def _damaged(name: str, error: Exception) -> ValueError:
  return ValueError(
    f'{name!r} is damaged or incomplete ({error}). Fetch or write it again.'
  )


def _json_rows(name: str, path: pathlib.Path) -> Iterator[rows.Item]:
  opener = gzip.open if path.name.endswith('.gz') else open
  try:
    with opener(path, 'rb') as f:
      first = f.read(_FIRST).removeprefix(_BOM).lstrip()[:1]
      f.seek(0)
      if first == b'{' and path.name.endswith(('.json', '.json.gz')):
        _check_lines(f, name)
      yield from (_array if first == b'[' else _lines)(f, name)
  except (EOFError, gzip.BadGzipFile, zlib.error) as e:
    raise _damaged(name, e) from e


def _lines(file: IO[bytes], name: str) -> Iterator[rows.Item]:
  for line, content in enumerate(file, start=1):
    if line == 1:
      content = content.removeprefix(_BOM)
    if not content.strip():
      continue
    try:
      yield rows.Row(_decoded(content), name, line)
    except errors.RowError as e:
      e.file, e.row = name, line
      yield e


def _array(file: IO[bytes], name: str) -> Iterator[rows.Item]:
  """The rows of an array, which is read whole; ValueError for a damaged one.

  Lines of which only the first begins like one are read as lines.
  """
  content = file.read()
  try:
    values = json.loads(content.decode('utf-8-sig'))
  except (ValueError, RecursionError) as error:
    _, *lines = content.split(b'\n', 2)
    if not lines or not _is_object(lines[0]):
      raise _damaged(name, error) from error
    file.seek(0)
    yield from _lines(file, name)
  else:
    for number, value in enumerate(values, start=1):
      yield rows.Row(value, name, number)


def _check_lines(file: IO[bytes], name: str) -> None:
  """ValueError for a file that is one object over several lines."""
  if not _is_object(file.readline()):
    file.seek(0)
    if _is_object(file.read()):
      raise ValueError(
        f'{name!r} is one JSON object; expected an array of rows, or a row a '
        'line.'
      )
  file.seek(0)


def _is_object(content: bytes) -> bool:
  try:
    return isinstance(_decoded(content.removeprefix(_BOM)), dict)
  except errors.RowError:
    return False


def _decoded(content: bytes) -> object:
  try:
    return json.loads(content.decode())
  except UnicodeDecodeError as e:
    raise errors.RowError('bad_utf8', str(e)) from e
  # Too many digits or brackets are not a JSONDecodeError.
  except (ValueError, RecursionError) as e:
    raise errors.RowError('malformed_json', str(e)) from e


def _opened(name: str, path: pathlib.Path):
  import pyarrow
  import pyarrow.parquet

  try:
    return pyarrow.parquet.ParquetFile(path)
  except (pyarrow.ArrowException, OSError) as e:
    raise _damaged(name, e) from e


def _parquet_rows(
  name: str, path: pathlib.Path, columns: Columns
) -> Iterator[rows.Item]:
  import pyarrow

  line = 0
  with _opened(name, path) as file:
    names = file.schema_arrow.names
    chosen = _chosen(name, names, columns)
    unread = tuple(n for n in names if n not in chosen)
    try:
      for batch in file.iter_batches(batch_size=_CHUNK, columns=chosen):
        for row in batch.to_pylist():
          line += 1
          yield rows.Row(row, name, line, unread=unread)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as e:
      raise _damaged(f'{name}, after row {line}', e) from e


def _chosen(name: str, given: Collection[str], columns: Columns) -> list[str]:
  """The columns to read of those given; ValueError if any is missing."""
  missing = [c for c in columns.required if c not in given]
  chosen = [c for c in given if c in {*columns.required, *columns.optional}]
  if missing or not chosen:
    wanted = missing or columns.optional
    near = registry.closest(wanted[0], given) if missing else ''
    raise ValueError(
      f'{name!r} has no column {", ".join(wanted)}.{near} It has: '
      f'{", ".join(given)}.'
    )
  return chosen
