"""The files that a URI, a local glob or a list of these stands for."""

import glob
import os
import pathlib
from collections.abc import Sequence

from dpo_jax.assets import uris

# (name, local file).
File = tuple[str, pathlib.Path]


def find_files(
  path: str | os.PathLike | Sequence[str],
  suffixes: tuple[str, ...],
  inside: str | None = None,
) -> list[File]:
  """The files that a path stands for, in order; each once.

  path: a URI (assets/uris.py), a local glob, or a list of these. Files end with
  one of `suffixes`; a glob gives those of its files that do, in the order of
  their names. inside: a glob for the files of a directory, such as
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


def files_inside(uri: str, folder: pathlib.Path, pattern: str) -> list[File]:
  """The files of a directory that a glob matches, in the order of names."""
  found = sorted(p for p in folder.glob(pattern) if p.is_file())
  return [(f'{uri}/{p.relative_to(folder).as_posix()}', p) for p in found]


def listing(folder: pathlib.Path) -> str:
  """What a directory holds, as a sentence."""
  names = sorted(p.name + '/' * p.is_dir() for p in folder.iterdir())
  more = f' and {len(names) - 10} more' if len(names) > 10 else ''
  held = f'{", ".join(names[:10])}{more}' if names else 'nothing'
  return f'{str(folder)!r} holds {held}.'


def _find(uri: str, suffixes: tuple[str, ...], within: str | None):
  expected = ' or '.join(suffixes)
  if '://' not in uri and glob.has_magic(uri) and not os.path.exists(uri):
    paths = glob.glob(os.path.expanduser(uri), recursive=True)
    found = [(p, pathlib.Path(p)) for p in sorted(paths)]
    missing = f'No {expected} file matches {uri!r}. {_nearby(uri)}'
  else:
    file = uris.resolve(uri)
    if not file.is_dir():
      _check_file(uri, file, suffixes, within)
      return [(uri, file)]
    if within is None:
      raise ValueError(
        f'{uri!r} is a directory; expected a file or a glob, or which of its '
        f"files to read, such as files='**/*{suffixes[0]}'. {listing(file)}"
      )
    found = files_inside(uri, file, within)
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
