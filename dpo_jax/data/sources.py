"""Where records come from: a name, its options, and the rows that they give.

A source is a function of keyword-only options. It finds its files, so that a
wrong path or option fails before anything is read, and returns a `Source`.
"""

import glob
import gzip
import json
import os
import pathlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import IO

from dpo_jax import assets, registry
from dpo_jax.data import drops, messages, movies, records

SUFFIXES = ('.jsonl', '.jsonl.gz')


def jsonl(
  *, path: str | os.PathLike | Sequence[str], kind: str = 'pairs'
) -> records.Source:
  """Rows of files with one JSON object a line, in the shapes of records.py.

  path: a URI of assets.py, a local glob, or a list of these, read in the order
  given. Files end in '.jsonl' or '.jsonl.gz'; a glob gives those of its files
  that do, in the order of their names.
  kind: a key of `records.KINDS`.
  """
  registry.lookup(records.KINDS, kind, 'kind of record')
  given = [path] if isinstance(path, str | os.PathLike) else path
  files = [file for uri in given for file in _find(str(uri))]
  if not files:
    raise ValueError('path is an empty list; expected a file, glob or URI.')
  names = [name for name, _ in files]
  for name in names:
    if names.count(name) > 1:
      raise ValueError(f'path gives {name!r} twice: its rows would repeat.')
  return records.Source(tuple(files), lambda render: _rows(files, kind, render))


SOURCES: dict[str, Callable[..., records.Source]] = {
  'jsonl': jsonl,
  'movie_ratings': movies.movie_ratings,
  'movie_sentences': movies.movie_sentences,
}


def _find(uri: str) -> list[tuple[str, pathlib.Path]]:
  """(name, local file) of every file that `uri` stands for."""
  local = '://' not in uri
  if local and glob.has_magic(uri) and not pathlib.Path(uri).exists():
    paths = sorted(
      glob.glob(str(pathlib.Path(uri).expanduser()), recursive=True)
    )
    found = [(p, pathlib.Path(p)) for p in paths if p.endswith(SUFFIXES)]
    if not found:
      raise FileNotFoundError(
        f'No {" or ".join(SUFFIXES)} file matches {uri!r}. {_nearby(uri)}'
      )
    return found
  file = assets.resolve(uri)
  if file.is_dir():
    raise ValueError(
      f'{uri!r} is a directory; expected a file or a glob. {_listing(file)}'
    )
  if not file.name.endswith(SUFFIXES):
    raise ValueError(
      f'{uri!r} does not end with {" or ".join(SUFFIXES)}: one JSON object a '
      f'line is expected.'
    )
  return [(uri, file)]


def _nearby(pattern: str) -> str:
  """What the deepest existing directory of a glob holds."""
  folder = pathlib.Path(pattern).expanduser().absolute()
  while glob.has_magic(str(folder)) or not folder.is_dir():
    folder = folder.parent
  return _listing(folder)


def _listing(folder: pathlib.Path) -> str:
  names = sorted(p.name + '/' * p.is_dir() for p in folder.iterdir())
  more = f' and {len(names) - 10} more' if len(names) > 10 else ''
  held = f'{", ".join(names[:10])}{more}' if names else 'nothing'
  return f'{str(folder)!r} holds {held}.'


def _rows(
  files: Sequence[tuple[str, pathlib.Path]], kind: str, render: messages.Render
) -> Iterator[records.Record | drops.RowError]:
  for name, path in files:
    opener = gzip.open if path.name.endswith('.gz') else open
    try:
      with opener(path, 'rb') as f:
        yield from _file_rows(f, name, kind, render)
    except (EOFError, gzip.BadGzipFile, zlib.error) as e:
      raise ValueError(
        f'{name!r} is damaged or incomplete ({e}). Fetch or write it again.'
      ) from e


def _file_rows(
  file: IO[bytes], name: str, kind: str, render: messages.Render
) -> Iterator[records.Record | drops.RowError]:
  for line, content in enumerate(file, start=1):
    if line == 1:
      content = content.removeprefix(b'\xef\xbb\xbf')
    if not content.strip():
      continue
    try:
      row = _decoded(content)
      record = records.parse(
        row, kind=kind, render=render, file=name, line=line
      )
    except drops.RowError as e:
      e.file, e.row = name, line
      yield e
    else:
      yield record


def _decoded(content: bytes) -> object:
  try:
    return json.loads(content.decode())
  except UnicodeDecodeError as e:
    raise drops.RowError('bad_utf8', str(e)) from e
  # Too many digits or brackets are not a JSONDecodeError.
  except (ValueError, RecursionError) as e:
    raise drops.RowError('malformed_json', str(e)) from e
