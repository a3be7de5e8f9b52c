"""The checkpoints in a folder: which are intact, and which are deleted."""

import contextlib
import errno
import os
import pathlib
import re
import shutil
import time

from absl import logging

from dpo_jax.training import checkpoint_manifest, processes

# A temporary name: of a checkpoint that is being written or deleted.
_UNFINISHED = re.compile(r'(\d+)\..+')
_MARGIN = 1 << 20  # Bytes of a checkpoint beside its arrays.


def steps_in(folder: pathlib.Path) -> set[int]:
  """The steps that folders in `folder` are named by, intact or damaged."""
  if not folder.is_dir():
    return set()
  return {int(p.name) for p in folder.iterdir() if p.name.isdecimal()}


class CheckpointFolder:
  """Checkpoints by step, and those whose writing or deletion was cut off."""

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    self._damaged: dict[int, str] = {}

  def path(self, step: int) -> pathlib.Path:
    return self.folder / str(step)

  def steps(self) -> list[int]:
    """Those on disk and not known to be damaged, ascending."""
    return sorted(steps_in(self.folder) - self._damaged.keys())

  def make_room(self, step: int, size: int) -> None:
    """Prepares to write a checkpoint; deletes a damaged one of the same step.

    size: bytes of its arrays. OSError if they do not fit: TensorStore, which
    would find out only while writing, prints dozens of tracebacks.
    """
    self.folder.mkdir(parents=True, exist_ok=True)
    self._delete({step} & steps_in(self.folder))
    free = shutil.disk_usage(self.folder).free
    if free < size + _MARGIN:
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  def keep_only(self, steps: set[int]) -> None:
    """Deletes all other checkpoints, and temporary folders."""
    self._delete({*self.steps(), *self._damaged} - steps)

  def _delete(self, steps: set[int]) -> None:
    for step in steps:
      # A half deleted checkpoint must not keep its name: it would look damaged.
      with contextlib.suppress(FileNotFoundError):
        os.replace(self.path(step), self.folder / f'{step}.removed')
      self._damaged.pop(step, None)
    self.delete_unfinished()

  def delete_unfinished(self) -> None:
    """Deletes temporary folders."""
    for _ in range(20):
      for path in self._unfinished().values():
        shutil.rmtree(path, ignore_errors=True)
      if not self._unfinished():
        return
      time.sleep(0.05)  # After an error, other threads may still write there.

  def _unfinished(self) -> dict[int, pathlib.Path]:
    """The temporary folders."""
    if not self.folder.exists():
      return {}
    found = ((_UNFINISHED.fullmatch(p.name), p) for p in self.folder.iterdir())
    return {int(match[1]): path for match, path in found if match}

  def newest_intact(self, group: processes.Group) -> int | None:
    """The newest checkpoint whose files match its manifest. Collective.

    Warns of the newer ones that it skips. None if there are no checkpoints;
    ValueError if all are damaged.
    """
    intact = None
    for step in group.in_first(lambda: self.steps()[::-1]):
      damage = checkpoint_manifest.find_damage(self.path(step), group)
      if damage is None:
        intact = step
        break
      self._damaged[step] = damage
    if intact is None and self._damaged:
      reasons = '; '.join(f'{s}: {r}' for s, r in self._damaged.items())
      raise ValueError(
        f'All checkpoints in {str(self.folder)!r} are damaged ({reasons}). '
        'Restore one from a copy, or remove the run and start again.'
      )
    group.in_first(lambda: self._warn(intact))
    return intact

  def _warn(self, intact: int | None) -> None:
    unfinished = dict.fromkeys(self._unfinished(), 'it was never finished')
    then = 'from the start' if intact is None else f'from checkpoint {intact}'
    for step, reason in (unfinished | self._damaged).items():
      if intact is None or step > intact:
        logging.warning(
          'Checkpoint %d in %s is damaged (%s): going on %s.',
          step,
          self.folder,
          reason,
          then,
        )
