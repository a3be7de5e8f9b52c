"""The rows of files: JSON lines, JSON arrays and Parquet.

.jsonl, .json       one JSON object a line, or one array of them; .gz too
.parquet            read by row groups, the needed columns alone
"""

import gzip
import json
import pathlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

from dpo_jax import assets, registry
from dpo_jax.chat import errors
from dpo_jax.data.sources import rows

# Rows of a Parquet file decoded at a time.
_CHUNK = 1024
_BOM = b'\xef\xbb\xbf'
# Bytes in which a file shows whether it is an array.
_FIRST = 1024


def source(
  found: Sequence[assets.File],
  rule: rows.Rule,
  *,
  columns: Sequence[str] = (),
  optional: Sequence[str] = (),
  **options: Any,
) -> rows.RecordSource:
  """The rows of files as records.

  columns, optional: as in `reader`. options: of `rows.source`.
  """
  return rows.source(found, reader(found, columns, optional), rule, **options)


def reader(
  found: Sequence[assets.File],
  columns: Sequence[str] = (),
  optional: Sequence[str] = (),
) -> Callable[[], Iterator[rows.Item]]:
  """() -> every row of the files: a JSON value, or a dict of Parquet columns.

  Lines, Parquet rows and elements of an array count from 1. columns, optional:
  of Parquet files, those that must be there, and those that are read if they
  are; without `columns`, one of `optional` must be. ValueError for a file
  without them, before it is read, and for a damaged one.
  """
  chosen = {}
  for name, path in found:
    if path.name.endswith('.parquet'):
      with _opened(name, path) as file:
        given = file.schema_arrow.names
      missing = [c for c in columns if c not in given]
      chosen[path] = [c for c in given if c in {*columns, *optional}]
      if missing or not chosen[path]:
        wanted = missing or optional
        near = registry.closest(wanted[0], given) if missing else ''
        raise ValueError(
          f'{name!r} has no column {", ".join(wanted)}.{near} It has: '
          f'{", ".join(given)}.'
        )

  def read():
    for name, path in found:
      if path in chosen:
        yield from _parquet_rows(name, path, chosen[path])
      else:
        yield from _json_rows(name, path)

  return read


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
  name: str, path: pathlib.Path, chosen: Sequence[str]
) -> Iterator[rows.Item]:
  import pyarrow

  line = 0
  with _opened(name, path) as file:
    unread = tuple(n for n in file.schema_arrow.names if n not in chosen)
    try:
      for batch in file.iter_batches(batch_size=_CHUNK, columns=chosen):
        for row in batch.to_pylist():
          line += 1
          yield rows.Row(row, name, line, unread=unread)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as e:
      raise _damaged(f'{name}, after row {line}', e) from e
