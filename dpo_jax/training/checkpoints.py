"""Checkpoints: the state and progress of a run, whole or not there.

A checkpoint is a directory named by its step. Beside the arrays lie record.json
(progress, metrics, the leaves' names, shapes and types) and a manifest of all
files. Everything is written under a temporary name and renamed once complete: a
killed process leaves no checkpoint, and what is damaged later is noticed.

For 1.08 GB (135 M parameters and one moment, float32) on two virtual cores, a
save takes 1.3 to 3.7 CPU seconds, of which the caller waits for 25 ms, and a
restore 2.2 to 4.2; 0.7 of either are checksums. A restore takes up to 0.6 GB
beside the state.
"""

import contextlib
import errno
import json
import os
import pathlib
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from absl import logging

from dpo_jax import assets, registry, types
from dpo_jax.training import leaves as leaves_lib
from dpo_jax.training import manifest

_RECORD = 'record.json'
# orbax writes these after the manifest, and restores whatever they hold.
_UNSEALED = ('_CHECKPOINT_METADATA', 'commit_success.txt')
# A temporary name: a checkpoint that is being written or removed.
_LEFTOVER = re.compile(r'(\d+)\..+')
_MARGIN = 1 << 20  # Bytes: what a checkpoint takes beside its arrays.
_OS_ERROR = re.compile(r"os_error_code='(\d+)'")  # In what TensorStore says.


def open(
  folder: str | os.PathLike,
  *,
  keep: int,
  best: str | None = None,
  best_mode: str = 'min',
  background: bool = True,
) -> 'Checkpoints':
  """The checkpoints in `folder`, which need not exist yet.

  keep: how many of the newest to keep. best: a metric; the checkpoint that is
  best by it is kept as well. best_mode: 'min' or 'max'. background: False lets
  save() return when all is on disk, so that no step runs, and no second state
  is held, beside a write.
  """
  registry.check_at_least('keep', keep, 1)
  better = registry.lookup({'min': min, 'max': max}, best_mode, 'best_mode')
  folder = pathlib.Path(folder).absolute()
  return Checkpoints(folder, keep, best, better, background)


def read_params(
  folder: str | os.PathLike,
  which: str,
  like: types.Params,
  *,
  best: str | None = None,
  best_mode: str = 'min',
) -> tuple[int, types.Params]:
  """Step and parameters of one checkpoint; see `Checkpoints.read`.

  best, best_mode: those of the run, for which='best'.
  """
  wanted = types.TrainState(None, like, None, None, None)
  with open(folder, keep=1, best=best, best_mode=best_mode) as saved:
    step, state = saved.read(which, wanted)
  return step, state.params


class Checkpoints:
  """Saves and restores; one process at a time may save into a folder.

  Older ones go only when a newer one is whole: for a moment `keep` + 1 are
  there, and the best.
  """

  def __init__(self, folder, keep, best, better, background):
    self._folder, self._keep = folder, keep
    self._best, self._better = best, better
    self._background = background
    self._record = ''  # Of the save under way.
    self._pending = None  # Its step and bytes.
    self._damaged: dict[int, str] = {}
    self._values: dict[int, float] = {}
    for step in self.steps():
      # A damaged one is restore()'s to tell of.
      with contextlib.suppress(OSError, ValueError, LookupError):
        self._note(step, assets.read_json(self._path(step) / _RECORD))
    self._store = leaves_lib.Store(self._seal)

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, kind, error, traceback) -> None:
    try:
      self.close()
    except OSError as failure:
      if error is None:
        raise
      logging.error('%s', failure)  # What ended the run matters more.

  def steps(self) -> list[int]:
    """Those on disk and not found damaged, rising."""
    return sorted(manifest.steps_in(self._folder) - self._damaged.keys())

  def best_step(self) -> int | None:
    """The best by the metric, the newest of equals; None if none has it."""
    values = {s: self._values[s] for s in self.steps() if s in self._values}
    best = self._better(values.values(), default=None)
    return max((s for s, v in values.items() if v == best), default=None)

  def save(
    self,
    step: int,
    state: types.TrainState,
    progress: Mapping[str, Any],
    metrics: Mapping[str, float] | None = None,
  ) -> None:
    """Writes a checkpoint, or begins to; nothing for a step that has one.

    `progress` is what json can write; its floats, NaN too, come back as they
    are. The state's buffers may be donated once this returns: on the CPU they
    are written from where they lie, and JAX puts the results of a donation
    elsewhere until then, so that at most one more state is held.

    Waits for the save before and raises what it raised; see wait().
    """
    self.wait()
    if step in self.steps():
      return
    if metrics and self._best and self._best not in metrics:
      raise registry.unknown('metric', self._best, metrics)
    leaves = leaves_lib.named(state)
    record = {
      'progress': progress,
      'metrics': {k: float(v) for k, v in (metrics or {}).items()},
      'leaves': leaves_lib.described(leaves),
      'generators': leaves_lib.generators(leaves),
    }
    self._record = json.dumps(record)
    self._folder.mkdir(parents=True, exist_ok=True)
    self._pending = step, leaves_lib.nbytes(leaves)
    with self._explained():
      self._sweep()
      self._check_space()
      self._store.save(self._path(step), leaves)
    self._damaged.pop(step, None)  # A damaged one was in its place.
    self._note(step, record)
    if not self._background:
      self.wait()

  def wait(self) -> None:
    """Until all saves are on disk.

    OSError for one that did not fit or could not be written: what it takes,
    what is free, and which checkpoint is the last good one, which stays.
    """
    if self._pending is None:
      return
    with self._explained():
      self._store.wait()
    self._pending = None
    self._prune()

  def close(self) -> None:
    """Waits as wait() does."""
    try:
      self.wait()
    finally:
      self._store.close()

  def restore(
    self, like: types.TrainState
  ) -> tuple[int, types.TrainState, dict[str, Any]] | None:
    """Step, state and progress of the newest whole one; None if there is none.

    `like` has arrays or ShapeDtypeStructs, whose shardings the leaves get; one
    without a sharding comes back as a NumPy array. All files are read once for
    their checksums, and once more by orbax.

    A damaged one is passed over with a warning, and removed with those that are
    not to be kept. ValueError if all are damaged, or if leaves differ in name,
    shape or type from those of `like`.
    """
    self.wait()
    step = self._newest_whole()
    if step is None:
      return None
    state, record = self._restore(step, like)
    # A kill may have come between the save of this one and the clean-up.
    self._prune()
    return step, state, record['progress']

  def read(
    self, which: str, like: types.TrainState
  ) -> tuple[int, types.TrainState]:
    """Step and state of the one that is asked for; changes nothing on disk.

    which: 'latest', 'best' or a step. like: as for restore(); what is None
    there is not read. ValueError if there is none, or a damaged or other one.
    """
    steps = self.steps()
    named = {'latest': max(steps, default=None), 'best': self.best_step()}
    named = {name: step for name, step in named.items() if step is not None}
    named |= {str(step): step for step in steps}
    step = registry.lookup(named, which, f'checkpoint in {str(self._folder)!r}')
    damage = manifest.damage(self._path(step))
    if damage is not None:
      raise ValueError(f'{str(self._path(step))!r} is not whole ({damage}).')
    absent = tuple(f'.{k}' for k, v in vars(like).items() if v is None)
    return step, self._restore(step, like, absent)[0]

  def _restore(self, step: int, like: types.TrainState, without: tuple = ()):
    """(state, record) of a whole one; `without` are paths not to be read."""
    wanted = leaves_lib.named(like)
    record = assets.read_json(self._path(step) / _RECORD)
    there = record['leaves'].items()
    there = {k: v for k, v in there if not k.startswith(without)}
    here = leaves_lib.described(wanted)
    leaves_lib.check_same(self._path(step), there, here)
    leaves = self._store.restore(self._path(step), wanted, record['generators'])
    state = jax.tree.unflatten(
      jax.tree.structure(like), [leaves[name] for name in wanted]
    )
    return state, record

  def _newest_whole(self) -> int | None:
    """Verifies from the newest on; warns of what it passes over."""
    passed = dict.fromkeys(self._leftovers(), 'it was never finished')
    whole = None
    for step in reversed(self.steps()):
      damage = manifest.damage(self._path(step))
      if damage is None:
        whole = step
        break
      passed[step] = self._damaged[step] = damage
    if whole is None and self._damaged:
      reasons = '; '.join(f'{s}: {r}' for s, r in self._damaged.items())
      raise ValueError(
        f'No checkpoint in {str(self._folder)!r} is whole ({reasons}). Put a '
        'copy of one there, or remove the run and start again.'
      )
    then = 'from the start' if whole is None else f'from checkpoint {whole}'
    for step, reason in passed.items():
      if whole is None or step > whole:
        logging.warning(
          'Checkpoint %d in %s is not whole (%s): going on %s.',
          step,
          self._folder,
          reason,
          then,
        )
    return whole

  def _path(self, step: int) -> pathlib.Path:
    return self._folder / str(step)

  def _note(self, step: int, record: Mapping[str, Any]) -> None:
    """Remembers the value that may make it the best; NaN never does."""
    value = record['metrics'].get(self._best, float('nan'))
    if value == value:
      self._values[step] = value

  def _seal(self, folder: pathlib.Path) -> None:
    """The last thing before the temporary `folder` gets its name."""
    manifest.write_text(folder / _RECORD, self._record)
    manifest.write(folder, without=_UNSEALED)

  def _leftovers(self) -> dict[int, pathlib.Path]:
    if not self._folder.exists():
      return {}
    found = ((_LEFTOVER.fullmatch(p.name), p) for p in self._folder.iterdir())
    return {int(match[1]): path for match, path in found if match}

  def _sweep(self) -> None:
    """Removes what no rename completed."""
    for _ in range(20):
      for path in self._leftovers().values():
        shutil.rmtree(path, ignore_errors=True)
      if not self._leftovers():
        return
      time.sleep(0.05)  # After an error, other threads still write there.

  def _prune(self) -> None:
    """Removes all but the newest, the best and what is no checkpoint."""
    whole = self.steps()
    kept = {*whole[-self._keep :], self.best_step()}
    for step in {*whole, *self._damaged} - kept:
      # Half removed under its own name, it would look damaged.
      with contextlib.suppress(FileNotFoundError):
        os.replace(self._path(step), self._folder / f'{step}.removed')
      self._damaged.pop(step, None)
    self._sweep()

  def _check_space(self) -> None:
    """OSError where it would not fit.

    Found only while writing, it makes TensorStore print dozens of tracebacks.
    """
    free = shutil.disk_usage(self._folder).free
    if free < self._pending[1] + _MARGIN:
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  @contextlib.contextmanager
  def _explained(self) -> Iterator[None]:
    """Turns what the system refused into an OSError that says what to do."""
    try:
      yield
    except Exception as error:
      (step, size), self._pending = self._pending, None
      self._values.pop(step, None)
      self._sweep()
      code = _os_code(error)
      if code is None:
        raise
      whole = self.steps()
      good = (
        f'The last good checkpoint is {str(self._path(whole[-1]))!r}; the same '
        'command goes on from there.'
        if whole
        else 'There is no earlier one.'
      )
      free = shutil.disk_usage(self._folder).free
      raise OSError(
        code,
        f'{os.strerror(code)}: checkpoint {step} takes {size / 1e6:.1f} MB in '
        f'{str(self._folder)!r}, where {free / 1e6:.1f} MB are free. {good}',
      ) from error


def _os_code(error: Exception) -> int | None:
  """The errno of a system's refusal, which TensorStore puts into its text."""
  if isinstance(error, OSError):
    return error.errno or errno.EIO
  found = _OS_ERROR.search(str(error))
  return int(found[1]) if found else None
