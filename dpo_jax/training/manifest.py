"""A folder's manifest: what its files held when it was complete."""

import errno
import json
import os
import pathlib

from dpo_jax import assets

NAME = 'manifest.json'


def write(folder: pathlib.Path, *, without: tuple[str, ...]) -> None:
  """Lists size and SHA-256 of all files but those named `without`."""
  files = {
    str(path.relative_to(folder)): [
      path.stat().st_size,
      assets.sha256_file(path),
    ]
    for path in sorted(folder.rglob('*'))
    if path.is_file() and path.name not in without
  }
  write_text(folder / NAME, json.dumps(files, indent=1))


def damage(folder: pathlib.Path) -> str | None:
  """What is wrong with the files of a folder; None if nothing is.

  Reads each file once. OSError for one that is there and may not be read.
  """
  try:
    for name, (size, digest) in assets.read_json(folder / NAME).items():
      found = (folder / name).stat().st_size
      if found != size:
        return f'{name} has {found} bytes, not {size}'
      if assets.sha256_file(folder / name) != digest:
        return f'{name} does not hold what was written'
  except (ValueError, TypeError) as error:
    return str(error)
  except OSError as error:
    if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EIO):
      raise
    return f'{error.filename}: {error.strerror}'
  return None


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
