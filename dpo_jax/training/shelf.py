"""The folder that checkpoints lie in: which are whole, and what must go."""

import contextlib
import errno
import os
import pathlib
import re
import shutil
import time

from absl import logging

from dpo_jax.training import jointly, manifest

# A temporary name: a checkpoint that is being written or removed.
_LEFTOVER = re.compile(r'(\d+)\..+')
_MARGIN = 1 << 20  # Bytes: what a checkpoint takes beside its arrays.


class Shelf:
  """Checkpoints by step, and what was left half written or half removed."""

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    self._damaged: dict[int, str] = {}

  def path(self, step: int) -> pathlib.Path:
    return self.folder / str(step)

  def steps(self) -> list[int]:
    """Those on disk and not found damaged, rising."""
    return sorted(manifest.steps_in(self.folder) - self._damaged.keys())

  def leftovers(self) -> dict[int, pathlib.Path]:
    if not self.folder.exists():
      return {}
    found = ((_LEFTOVER.fullmatch(p.name), p) for p in self.folder.iterdir())
    return {int(match[1]): path for match, path in found if match}

  def make_room(self, step: int, size: int) -> None:
    """For a checkpoint of so many bytes; a damaged one may be in its place.

    OSError where it would not fit. Found only while writing, it makes
    TensorStore print dozens of tracebacks.
    """
    self.folder.mkdir(parents=True, exist_ok=True)
    self.remove({step} & manifest.steps_in(self.folder))
    free = shutil.disk_usage(self.folder).free
    if free < size + _MARGIN:
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  def keep(self, steps: set[int]) -> None:
    """Removes all but these, and what is no checkpoint."""
    self.remove({*self.steps(), *self._damaged} - steps)

  def remove(self, steps: set[int]) -> None:
    """Removes these, and what no rename completed."""
    for step in steps:
      # Half removed under its own name, it would look damaged.
      with contextlib.suppress(FileNotFoundError):
        os.replace(self.path(step), self.folder / f'{step}.removed')
      self._damaged.pop(step, None)
    self.sweep()

  def sweep(self) -> None:
    """Removes what no rename completed."""
    for _ in range(20):
      for path in self.leftovers().values():
        shutil.rmtree(path, ignore_errors=True)
      if not self.leftovers():
        return
      time.sleep(0.05)  # After an error, other threads still write there.

  def newest_whole(self, circle: jointly.Circle) -> int | None:
    """Verifies from the newest on; warns of what it passes over.

    All processes of the circle call it. ValueError if all are damaged.
    """
    whole = None
    for step in circle.first(lambda: self.steps()[::-1]):
      damage = manifest.damage(self.path(step), circle)
      if damage is None:
        whole = step
        break
      self._damaged[step] = damage
    if whole is None and self._damaged:
      reasons = '; '.join(f'{s}: {r}' for s, r in self._damaged.items())
      raise ValueError(
        f'No checkpoint in {str(self.folder)!r} is whole ({reasons}). Put a '
        'copy of one there, or remove the run and start again.'
      )
    circle.first(lambda: self._warn(whole))
    return whole

  def _warn(self, whole: int | None) -> None:
    unfinished = dict.fromkeys(self.leftovers(), 'it was never finished')
    then = 'from the start' if whole is None else f'from checkpoint {whole}'
    for step, reason in (unfinished | self._damaged).items():
      if whole is None or step > whole:
        logging.warning(
          'Checkpoint %d in %s is not whole (%s): going on %s.',
          step,
          self.folder,
          reason,
          then,
        )
