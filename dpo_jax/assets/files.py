"""Files: the cache, writing whole ones, reading those that others wrote.

Files in the cache are written under temporary names and renamed once complete
and verified: a file with its final name is whole, whoever was killed. A damaged
file is a ValueError that names it.
"""

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from typing import Any

_END = 1 << 20  # Bytes.
_STALE_SECONDS = 24 * 3600
# Folders of the cache for token records and for reference scores.
_WRITTEN = ('tokens', 'reference')
# What os.replace() says where a file or a full directory is in the way.
_IN_THE_WAY = (errno.ENOTEMPTY, errno.EEXIST, errno.EISDIR, errno.ENOTDIR)
_AGAIN = 'it may be damaged or cut short; fetch it again'


def cache_dir(*parts: str) -> pathlib.Path:
  """`$DPO_JAX_CACHE` (or ~/.cache/dpo_jax) joined with `parts`, created.

  ValueError that names the variable where it can't be.
  """
  root = os.environ.get('DPO_JAX_CACHE') or '~/.cache/dpo_jax'
  path = pathlib.Path(root, *parts)
  try:
    path = path.expanduser()
    path.mkdir(parents=True, exist_ok=True)
  except (OSError, RuntimeError) as error:  # RuntimeError: no home is known.
    raise _no_cache(path, error) from error
  return path


def check_cache() -> None:
  """ValueError unless what a run keeps in the cache can be written there."""
  for path in map(cache_dir, _WRITTEN):
    try:
      with tempfile.TemporaryFile(dir=path):
        pass
    except OSError as error:
      raise _no_cache(path, error) from error


def _no_cache(path: pathlib.Path, error: Exception) -> ValueError:
  reason = getattr(error, 'strerror', None) or error
  return ValueError(
    f'The cache {str(path)!r} cannot be written ({reason}): set DPO_JAX_CACHE '
    'to a folder that can.'
  )


def local_path(path: str | os.PathLike, what: str) -> pathlib.Path:
  """The path, ~ expanded; ValueError for a URI such as gs://bucket/run.

  what: the option that gave it. A pathlib.Path has made 'gs:/' of 'gs://'.
  """
  if re.match(r'[A-Za-z][\w+.-]+:/', str(path)):
    raise ValueError(
      f'{what} is {str(path)!r}; expected a local path, such as one where the '
      'bucket is mounted: models and data alone are read from URIs.'
    )
  return pathlib.Path(path).expanduser()


def sha256_file(path: str | os.PathLike) -> str:
  """The SHA-256 of a file's content, in hex."""
  with open(path, 'rb') as f:
    return hashlib.file_digest(f, 'sha256').hexdigest()


def ends(path: pathlib.Path) -> str:
  """Name, size and hash of both ends: for little, tells most files apart."""
  size = path.stat().st_size
  with path.open('rb') as f:
    digest = hashlib.sha256(f.read(_END))
    f.seek(max(size - _END, 0))
    digest.update(f.read())
  return f'{path.name}: {size} bytes, SHA-256 {digest.hexdigest()[:16]}'


@contextlib.contextmanager
def atomic_path(target: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Yields a path to write a file or directory at; renames it to `target`.

  On an exception what was written is removed. A killed process leaves
  '.<name>.<16 hex digits>.tmp', which a later call for the same target removes
  once it is a day old. A file replaces a file, a directory an empty one;
  FileExistsError where anything else is at `target`, which is kept.
  """
  target = pathlib.Path(target)
  with scratch(target) as temp:
    yield temp
    try:
      os.replace(temp, target)
    except OSError as error:
      if error.errno not in _IN_THE_WAY:
        raise
      raise FileExistsError(
        f'{str(target)!r} exists and is not replaced: {error.strerror}.'
      ) from error


@contextlib.contextmanager
def scratch(target: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields an unused name beside `target`; what is there is removed after."""
  target.parent.mkdir(parents=True, exist_ok=True)
  stem = f'.{target.name[:64]}.'
  ours = re.compile(re.escape(stem) + r'[0-9a-f]{16}\.tmp')
  for path in filter(lambda p: ours.fullmatch(p.name), target.parent.iterdir()):
    with contextlib.suppress(OSError):
      if time.time() - path.stat().st_mtime > _STALE_SECONDS:
        _remove(path)
  temp = target.with_name(f'{stem}{secrets.token_hex(8)}.tmp')
  try:
    yield temp
  finally:
    _remove(temp)


def _remove(path: pathlib.Path):
  if path.is_dir():
    shutil.rmtree(path, ignore_errors=True)
  else:
    path.unlink(missing_ok=True)


def damaged(path: str | os.PathLike, what: str, error: object) -> ValueError:
  """The error for a file that is there and is not `what` it should be."""
  return ValueError(f'{str(path)!r} is no {what} ({_AGAIN}): {error}')


def read_text(path: pathlib.Path) -> str:
  """The text of a file; ValueError if it is not UTF-8."""
  try:
    return path.read_text('utf-8')
  except UnicodeDecodeError as error:
    raise damaged(path, 'UTF-8 text', error) from error


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """The fields of a JSON object; ValueError if there is anything else."""
  text = read_text(path)
  try:
    values = json.loads(text)
  except ValueError as error:
    raise damaged(path, 'JSON', error) from error
  if not isinstance(values, dict):
    raise damaged(path, 'JSON object', f'it holds a {type(values).__name__}')
  return values


def read_gguf(path: str | os.PathLike):
  """A `gguf.GGUFReader` on `path`; ValueError if it is no whole GGUF file.

  The metadata is read in hundreds of thousands of slices; those of an array
  cost a third of those of a memory map.
  """
  import gguf
  import numpy as np

  class Reader(gguf.GGUFReader):
    data = property(
      lambda self: self._array,
      lambda self, data: setattr(self, '_array', data.view(np.ndarray)),
    )

    def _get(self, offset, dtype, count=1, **options):
      found = super()._get(offset, dtype, count, **options)
      if found.size < count:  # A slice that leaves the file is only shorter.
        raise ValueError(f'it ends before byte {offset + found.nbytes + 1}')
      return found

  try:
    return Reader(path)
  except (ValueError, TypeError, LookupError, ArithmeticError) as error:
    raise damaged(path, 'GGUF file', error) from error
