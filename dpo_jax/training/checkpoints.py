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
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from absl import logging

from dpo_jax import assets, registry, types
from dpo_jax.training import jointly, manifest, shelf
from dpo_jax.training import leaves as leaves_lib

_RECORD = 'record.json'
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
  """Saves and restores; one run at a time may save into a folder.

  In many processes all call the same, and what fails in one is raised in all.
  Each writes and reads its own shards and a share of the checksums; process 0
  alone decides and cleans up.

  Older ones go only when a newer one is whole: for a moment `keep` + 1 are
  there, and the best.
  """

  def __init__(self, folder, keep, best, better, background):
    self._shelf, self._keep = shelf.Shelf(folder), keep
    self._best, self._better = best, better
    self._background = background
    self._pending = None  # Step and bytes of the save under way.
    self._values: dict[int, float] = {}
    for step in self.steps():
      # A damaged one is restore()'s to tell of.
      with contextlib.suppress(OSError, ValueError, LookupError):
        self._note(step, assets.read_json(self._shelf.path(step) / _RECORD))
    self._circle = jointly.Circle()
    self._store = leaves_lib.Store(self._circle)

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, kind, error, traceback) -> None:
    if error is not None and jax.process_count() > 1:
      # The others, where nothing may have failed, do not come here.
      self._store.close()
      return
    try:
      self.close()
    except OSError as failure:
      if error is None:
        raise
      logging.error('%s', failure)  # What ended the run matters more.

  def steps(self) -> list[int]:
    """Those on disk and not found damaged, rising."""
    return self._shelf.steps()

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
    are. It and the metrics are process 0's. The state's buffers may be donated
    once this returns: on the CPU they are written from where they lie, and JAX
    puts the results of a donation elsewhere until then, so that at most one
    more state is held.

    Waits for the save before and raises what it raised; see wait().
    """
    self.wait()
    if self._circle.first(lambda: step in self.steps()):
      return
    leaves = leaves_lib.named(state)
    size = leaves_lib.nbytes(leaves)
    record = self._circle.first(
      lambda: self._make_record(leaves, progress, metrics)
    )
    self._pending = step, size
    with self._explained():
      self._circle.first(lambda: self._shelf.make_room(step, size))
      self._store.save(
        self._shelf.path(step),
        leaves,
        lambda folder: self._seal(folder, record),
      )
    self._note(step, json.loads(record))
    if not self._background:
      self.wait()

  def _make_record(self, leaves, progress, metrics) -> str:
    if metrics and self._best and self._best not in metrics:
      raise registry.unknown('metric', self._best, metrics)
    record = {
      'progress': progress,
      'metrics': {k: float(v) for k, v in (metrics or {}).items()},
      'leaves': leaves_lib.described(leaves),
      'generators': leaves_lib.generators(leaves),
    }
    return json.dumps(record)

  def _seal(self, folder: pathlib.Path, record: str) -> None:
    """The last thing before the temporary `folder` gets its name."""
    path = folder / _RECORD
    self._circle.first(lambda: manifest.write_text(path, record))
    manifest.write(folder, self._circle)

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
    self._circle.first(self._prune)

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

    `like` has arrays or ShapeDtypeStructs, whose shardings the leaves get,
    whatever they were when saved; one without a sharding comes back as a NumPy
    array. All files are read once for their checksums, and once more by orbax,
    of which a process reads what its devices are to hold.

    A damaged one is passed over with a warning, and removed with those that are
    not to be kept. ValueError if all are damaged, or if leaves differ in name,
    shape or type from those of `like`.
    """
    self.wait()
    step = self._shelf.newest_whole(self._circle)
    if step is None:
      return None
    state, record = self._restore(step, like)
    # A kill may have come between the save of this one and the clean-up.
    self._circle.first(self._prune)
    return step, state, record['progress']

  def read(
    self, which: str, like: types.TrainState
  ) -> tuple[int, types.TrainState]:
    """Step and state of the one that is asked for; changes nothing on disk.

    which: 'latest', 'best' or a step. like: as for restore(); what is None
    there is not read. ValueError if there is none, or a damaged or other one.
    """
    step = self._circle.first(lambda: self._find(which))
    damage = manifest.damage(self._shelf.path(step), self._circle)
    if damage is not None:
      raise ValueError(
        f'{str(self._shelf.path(step))!r} is not whole ({damage}).'
      )
    absent = tuple(f'.{k}' for k, v in vars(like).items() if v is None)
    return step, self._restore(step, like, absent)[0]

  def _find(self, which: str) -> int:
    steps = self.steps()
    named = {'latest': max(steps, default=None), 'best': self.best_step()}
    named = {name: step for name, step in named.items() if step is not None}
    named |= {str(step): step for step in steps}
    folder = str(self._shelf.folder)
    return registry.lookup(named, which, f'checkpoint in {folder!r}')

  def _restore(self, step: int, like: types.TrainState, without: tuple = ()):
    """(state, record) of a whole one; `without` are paths not to be read."""
    path = self._shelf.path(step)
    wanted = leaves_lib.named(like)
    record = self._circle.first(lambda: assets.read_json(path / _RECORD))
    there = record['leaves'].items()
    there = {k: v for k, v in there if not k.startswith(without)}
    leaves_lib.check_same(path, there, leaves_lib.described(wanted))
    leaves = self._store.restore(path, wanted, record['generators'])
    state = jax.tree.unflatten(
      jax.tree.structure(like), [leaves[name] for name in wanted]
    )
    return state, record

  def _note(self, step: int, record: Mapping[str, Any]) -> None:
    """Remembers the value that may make it the best; NaN never does."""
    value = record['metrics'].get(self._best, float('nan'))
    if value == value:
      self._values[step] = value

  def _prune(self) -> None:
    """Removes all but the newest, the best and what is no checkpoint."""
    self._shelf.keep({*self.steps()[-self._keep :], self.best_step()})

  @contextlib.contextmanager
  def _explained(self) -> Iterator[None]:
    """Turns what the system refused into an OSError that says what to do."""
    try:
      yield
    except Exception as error:
      (step, size), self._pending = self._pending, None
      self._values.pop(step, None)
      code = _os_code(error)
      text = self._circle.first(lambda: self._give_up(step, size))
      if code is None:
        raise
      raise OSError(code, f'{os.strerror(code)}: {text}') from error

  def _give_up(self, step: int, size: int) -> str:
    """Removes what there is of a checkpoint; says what it would take."""
    self._shelf.sweep()
    whole = self.steps()
    good = (
      f'The last good checkpoint is {str(self._shelf.path(whole[-1]))!r}; the '
      'same command goes on from there.'
      if whole
      else 'There is no earlier one.'
    )
    folder = self._shelf.folder
    free = shutil.disk_usage(folder).free
    return (
      f'checkpoint {step} takes {size / 1e6:.1f} MB in {str(folder)!r}, where '
      f'{free / 1e6:.1f} MB are free. {good}'
    )


def _os_code(error: Exception) -> int | None:
  """The errno of a system's refusal, which TensorStore puts into its text."""
  if isinstance(error, OSError):
    return error.errno or errno.EIO
  found = _OS_ERROR.search(str(error))
  return int(found[1]) if found else None
