"""The cache folder, atomic writes, and reads that report damaged files.

Files in the cache are written under temporary names and renamed once they are
complete and verified, so a file with its final name is complete, even if a
process was killed. A damaged file is a ValueError that names it.
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
from collections.abc import Iterable, Iterator
from typing import Any

# Bytes that `quick_fingerprint` hashes at each end of a file.
_END_BYTES = 1 << 20
_STALE_SECONDS = 24 * 3600
# Folders of the cache: token records, reference log-probs.
_FOLDERS = ('tokens', 'reference')
# Errors of os.replace() if the target is a file or a non-empty directory.
_TARGET_EXISTS = (errno.ENOTEMPTY, errno.EEXIST, errno.EISDIR, errno.ENOTDIR)


def cache_dir(*parts: str) -> pathlib.Path:
  """Creates and returns `$DPO_JAX_CACHE` (or ~/.cache/dpo_jax) / `parts`.

  ValueError that names the variable if it cannot be created.
  """
  root = os.environ.get('DPO_JAX_CACHE') or '~/.cache/dpo_jax'
  path = pathlib.Path(root, *parts)
  try:
    path = path.expanduser()
    path.mkdir(parents=True, exist_ok=True)
  except (OSError, RuntimeError) as error:  # RuntimeError: no home directory.
    raise _no_cache(path, error) from error
  return path


def check_cache() -> None:
  """ValueError unless a run can write to its folders of the cache."""
  for path in map(cache_dir, _FOLDERS):
    try:
      with tempfile.TemporaryFile(dir=path):
        pass
    except OSError as error:
      raise _no_cache(path, error) from error


def _no_cache(path: pathlib.Path, error: Exception) -> ValueError:
  reason = getattr(error, 'strerror', None) or error
  return ValueError(
    f'The cache {str(path)!r} cannot be written ({reason}): set DPO_JAX_CACHE '
    'to a folder that is writable.'
  )


def local_path(path: str | os.PathLike, what: str) -> pathlib.Path:
  """The path with ~ expanded; ValueError for a URI such as gs://bucket/run.

  what: the option that has it, for the error.
  """
  # One slash: pathlib.Path('gs://x') is 'gs:/x'.
  if re.match(r'[A-Za-z][\w+.-]+:/', str(path)):
    raise ValueError(
      f'{what} is {str(path)!r}; expected a local path, such as one where the '
      'bucket is mounted: only models and data are read from URIs.'
    )
  return pathlib.Path(path).expanduser()


def sha256_file(path: str | os.PathLike) -> str:
  """The SHA-256 of a file's content, in hex."""
  with open(path, 'rb') as f:
    return hashlib.file_digest(f, 'sha256').hexdigest()


def quick_fingerprint(path: pathlib.Path) -> str:
  """A file's name, size, and SHA-256 of its first and last MiB.

  Cheap for large files; distinguishes most files.
  """
  size = path.stat().st_size
  with path.open('rb') as f:
    digest = hashlib.sha256(f.read(_END_BYTES))
    f.seek(max(size - _END_BYTES, 0))
    digest.update(f.read())
  return f'{path.name}: {size} bytes, SHA-256 {digest.hexdigest()[:16]}'


def fingerprint_of(paths: Iterable[pathlib.Path]) -> str:
  """SHA-256 of the `quick_fingerprint` of each, in hex."""
  lines = map(quick_fingerprint, paths)
  return hashlib.sha256('\n'.join(lines).encode()).hexdigest()


@contextlib.contextmanager
def atomic_path(target: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Yields a temporary path for a file or directory; renames it to `target`.

  After an exception the temporary path is removed. A killed process leaves
  '.<name>.<16 hex digits>.tmp', which a later call for the same target removes
  when it is a day old. A file replaces a file, a directory an empty directory;
  FileExistsError for any other existing `target`, which is kept.
  """
  target = pathlib.Path(target)
  with temporary_path(target) as temp:
    yield temp
    try:
      os.replace(temp, target)
    except OSError as error:
      if error.errno not in _TARGET_EXISTS:
        raise
      raise FileExistsError(
        f'{str(target)!r} exists and is not replaced: {error.strerror}.'
      ) from error


@contextlib.contextmanager
def temporary_path(target: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields an unused path beside `target`, which is removed afterwards."""
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
  """The error for a file that exists but is not a valid `what`."""
  return ValueError(
    f'{str(path)!r} is no {what} (it may be damaged or cut short; fetch it '
    f'again): {error}'
  )


def read_text(path: pathlib.Path) -> str:
  """The text of a file; ValueError if it is not UTF-8."""
  try:
    return path.read_text('utf-8')
  except UnicodeDecodeError as error:
    raise damaged(path, 'UTF-8 text', error) from error


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """The fields of a JSON object; ValueError if the file holds anything else."""
  text = read_text(path)
  try:
    values = json.loads(text)
  except ValueError as error:
    raise damaged(path, 'JSON', error) from error
  if not isinstance(values, dict):
    raise damaged(path, 'JSON object', f'it holds a {type(values).__name__}')
  return values


def read_json_lines(
  path: str | os.PathLike,
) -> Iterator[tuple[str, Any]]:
  """('path:line', value) of each line that is not blank.

  ValueError that names the line for one that is not JSON.
  """
  lines = read_text(pathlib.Path(path)).split('\n')
  for number, line in enumerate(lines, start=1):
    if line.strip():
      where = f'{path}:{number}'
      try:
        value = json.loads(line)
      except ValueError as error:
        raise ValueError(f'{where} is not JSON: {error}') from error
      yield where, value


def read_gguf(path: str | os.PathLike):
  """A `gguf.GGUFReader` of `path`; ValueError for a damaged file.

  The library reads the metadata in hundreds of thousands of slices of a memory
  map; slices of a plain array cost a third.
  """
  import gguf
  import numpy as np

  class Reader(gguf.GGUFReader):
    data = property(
      lambda self: self._array,
      lambda self, data: setattr(self, '_array', data.view(np.ndarray)),
    )

  try:
    reader = Reader(path)
  except (ValueError, TypeError, LookupError, ArithmeticError) as error:
    raise damaged(path, 'GGUF file', error) from error
  # The library raises if the file ends earlier than in the last field.
  *_, last = reader.fields.values()
  is_text = last.types[-1] == gguf.GGUFValueType.STRING
  for i in last.data:
    if last.parts[i].size < (last.parts[i - 1][0] if is_text else 1):
      raise damaged(path, 'GGUF file', f'it ends within {last.name}')
  return reader
