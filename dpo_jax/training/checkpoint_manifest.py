"""A checkpoint's manifest.json: size and SHA-256 of each of its files."""

import errno
import json
import os
import pathlib

from dpo_jax import assets
from dpo_jax.training import processes

NAME = 'manifest.json'


def write(folder: pathlib.Path, group: processes.Group) -> None:
  """Lists all files of the folder. Collective: each process hashes some."""
  names = group.in_first(lambda: _files(folder))
  sums = group.map(lambda name: _size_and_hash(folder / name), names)
  text = json.dumps(dict(zip(names, sums, strict=True)), indent=1)
  group.in_first(lambda: write_text(folder / NAME, text))


def find_damage(folder: pathlib.Path, group: processes.Group) -> str | None:
  """How the files differ from the manifest; None if they do not.

  Collective: each process reads some of the files, each file once. OSError for
  a file that exists and cannot be read.
  """
  files, problem = group.in_first(lambda: _listed(folder))
  if problem is not None:
    return problem
  found = group.map(lambda file: _damage_of(folder, *file), files)
  return next(filter(None, found), None)


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a file and flushes it to the disk."""
  with path.open('w', encoding='utf-8') as f:
    f.write(text)
    f.flush()
    os.fsync(f.fileno())


def _files(folder: pathlib.Path) -> list[str]:
  return sorted(
    str(path.relative_to(folder))
    for path in folder.rglob('*')
    if path.is_file()
  )


def _size_and_hash(path: pathlib.Path) -> tuple[int, str]:
  return path.stat().st_size, assets.sha256_file(path)


def _listed(folder: pathlib.Path) -> tuple[list | None, str | None]:
  """([name, size, SHA-256] of the manifest, what is wrong with it)."""
  try:
    listed = assets.read_json(folder / NAME).items()
    return [(name, size, sha256) for name, (size, sha256) in listed], None
  except (ValueError, TypeError) as error:
    return None, str(error)
  except OSError as error:
    return None, _missing(error)


def _damage_of(
  folder: pathlib.Path, name: str, size: int, sha256: str
) -> str | None:
  try:
    found = (folder / name).stat().st_size
    if found != size:
      return f'{name} has {found} bytes, not {size}'
    if assets.sha256_file(folder / name) != sha256:
      return f'{name} does not hold what was written'
  except ValueError as error:  # A name that no file can have.
    return str(error)
  except OSError as error:
    return _missing(error)
  return None


def _missing(error: OSError) -> str:
  """The damage that an error reports; raises any other error."""
  if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EIO):
    raise error
  return f'{error.filename}: {error.strerror}'
