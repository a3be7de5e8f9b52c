"""A folder's manifest: what its files held when it was complete."""

import errno
import json
import os
import pathlib

from dpo_jax import assets
from dpo_jax.training import jointly

NAME = 'manifest.json'


def write(folder: pathlib.Path, circle: jointly.Circle) -> None:
  """Lists size and SHA-256 of all files.

  The processes of the circle, all of which call it, read a share of them each.
  """
  names = circle.first(lambda: _files(folder))
  sums = circle.map(lambda name: _sums(folder / name), names)
  text = json.dumps(dict(zip(names, sums, strict=True)), indent=1)
  circle.first(lambda: write_text(folder / NAME, text))


def _files(folder: pathlib.Path) -> list[str]:
  return sorted(
    str(path.relative_to(folder))
    for path in folder.rglob('*')
    if path.is_file()
  )


def _sums(path: pathlib.Path) -> tuple[int, str]:
  return path.stat().st_size, assets.sha256_file(path)


def damage(folder: pathlib.Path, circle: jointly.Circle) -> str | None:
  """What is wrong with the files of a folder; None if nothing is.

  Reads each file once, in one of the processes, all of which call it. OSError
  for one that is there and may not be read.
  """
  files, unread = circle.first(lambda: _listed(folder))
  if unread is not None:
    return unread
  found = circle.map(lambda item: _damage(folder, *item), files)
  return next(filter(None, found), None)


def _listed(folder: pathlib.Path) -> tuple[list | None, str | None]:
  """(what the manifest lists, what is wrong with it)."""
  try:
    listed = assets.read_json(folder / NAME).items()
    return [(name, size, digest) for name, (size, digest) in listed], None
  except (ValueError, TypeError) as error:
    return None, str(error)
  except OSError as error:
    return None, _unreadable(error)


def _damage(folder, name: str, size: int, digest: str) -> str | None:
  try:
    found = (folder / name).stat().st_size
    if found != size:
      return f'{name} has {found} bytes, not {size}'
    if assets.sha256_file(folder / name) != digest:
      return f'{name} does not hold what was written'
  except ValueError as error:  # No name that a file can have.
    return str(error)
  except OSError as error:
    return _unreadable(error)
  return None


def _unreadable(error: OSError) -> str:
  """As damage; raises what is none."""
  if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EIO):
    raise error
  return f'{error.filename}: {error.strerror}'


def steps_in(folder: pathlib.Path) -> set[int]:
  """The steps that name folders of checkpoints in `folder`, whole or not."""
  if not folder.is_dir():
    return set()
  return {int(p.name) for p in folder.iterdir() if p.name.isdecimal()}


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a file through to the disk."""
  with path.open('w', encoding='utf-8') as f:
    f.write(text)
    f.flush()
    os.fsync(f.fileno())
