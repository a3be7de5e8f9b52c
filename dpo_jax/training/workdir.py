"""A run's directory: one run, one config, rows that fit its checkpoint."""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TextIO

from absl import logging

from dpo_jax import assets
from dpo_jax.training import metrics, processes

_CONFIG, _LOCK = 'config.json', '.lock'
INPUTS = 'inputs.json'  # See inputs.py.
_WHERE = ('mesh', 'distributed')
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_ABSENT = object()
# A temporary name of `assets.atomic_path`.
_UNFINISHED = re.compile(r'\..+\.[0-9a-f]{16}\.tmp')


@contextlib.contextmanager
def claim(workdir: pathlib.Path, config: Mapping[str, Any]) -> Iterator[None]:
  """Makes `workdir` this run's and this config's; frees it on exit.

  Process 0 holds it, for all processes of the run, which must see it.

  A directory whose config.json equals `config`, but for the mesh, the
  accumulation steps and how processes meet, is a run to go on with; one that
  holds at most inputs.json beside it is no run yet, and takes another config,
  whose inputs are others. Its config.json is replaced. Raises
  ValueError for one that can't be written, that another process holds, that
  belongs to a config with other values, or that holds files but no config.json.
  What killed processes left half written is removed.

  The kernel frees the lock when its process, and any forked from it, is gone.
  On a network file system the lock binds the processes of all hosts only where
  that system carries it (NFS 4, Lustre mounted with flock); elsewhere it binds
  one host's or, with a warning, none.
  """
  with contextlib.ExitStack() as held:
    refusal = None
    if processes.first():
      try:
        held.enter_context(_claim(workdir, config))
      except ValueError as error:
        refusal = str(error)
    refusal = processes.share(refusal)
    if refusal:
      raise ValueError(refusal)
    if processes.many():
      _check_shared(workdir)
    yield


def _check_shared(workdir: pathlib.Path) -> None:
  """ValueError in every process if one sees another directory."""
  path = workdir / _LOCK
  holder = path.read_text('utf-8') if processes.first() else None
  holder = processes.share(holder)
  seen = False
  for _ in range(50):  # Over a network it may take a moment to show.
    with contextlib.suppress(OSError):
      seen = path.read_text('utf-8') == holder
    if seen:
      break
    time.sleep(0.2)
  found = (
    'that of process 0' if seen else 'another, not on a shared file system'
  )
  processes.agree('--workdir', f'{str(workdir)!r} is {found}')


@contextlib.contextmanager
def _claim(workdir: pathlib.Path, config: Mapping[str, Any]) -> Iterator[None]:
  with _opened(workdir) as lock:
    _hold(lock, workdir)
    _clean(workdir)
    _settle(workdir / _CONFIG, config)
    yield


def _opened(workdir: pathlib.Path) -> TextIO:
  """The lock's file; ValueError for a directory that can't be written."""
  try:
    _refuse_foreign(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    # The lock that is there may be writable where the directory is not.
    with tempfile.TemporaryFile(dir=workdir):
      return open(workdir / _LOCK, 'a+', encoding='utf-8')
  except OSError as error:
    raise ValueError(
      f'--workdir {str(workdir)!r} cannot be written ({error}). Give another '
      'directory.'
    ) from error


def _refuse_foreign(workdir: pathlib.Path) -> None:
  """ValueError if anything is there that no run began."""
  if not workdir.exists():
    return
  names = (
    [p.name for p in workdir.iterdir()] if workdir.is_dir() else ['a file']
  )
  # A kill may leave the lock alone, or with an unfinished config.json.
  others = [n for n in names if n != _LOCK and not n.startswith(f'.{_CONFIG}.')]
  if others and _CONFIG not in names:
    raise ValueError(
      f'--workdir {str(workdir)!r} is not empty ({min(others)}) and has no '
      f'{_CONFIG}: no run began there. Give a new directory, or remove this '
      'one.'
    )


def _hold(lock, workdir: pathlib.Path) -> None:
  try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError as error:
    lock.seek(0)
    holder = lock.read().strip() or 'another process'
    raise ValueError(
      f'--workdir {str(workdir)!r} is in use by {holder}. Wait for it, stop '
      'it, or give another directory.'
    ) from error
  except OSError as error:
    if error.errno not in _NO_LOCKS:
      raise
    logging.warning(
      'No file locks in %s (%s): nothing stops a second run there.',
      workdir,
      error.strerror,
    )
  lock.truncate(0)
  lock.write(f'process {os.getpid()} on {socket.gethostname()}\n')
  lock.flush()


def _clean(workdir: pathlib.Path) -> None:
  """Removes unfinished files and folders; a model's may be large."""
  for path in list(workdir.rglob('.*.tmp')):
    if _UNFINISHED.fullmatch(path.name):
      # A folder may have taken those inside it along.
      path.unlink(missing_ok=True) if not path.is_dir() else shutil.rmtree(path)


def _settle(path: pathlib.Path, config: Mapping[str, Any]) -> None:
  """Compares with the config.json of a run that has begun, or writes it."""
  text = json.dumps(config, indent=2) + '\n'
  names = {p.name for p in path.parent.iterdir()}
  begun = not names <= {_CONFIG, _LOCK, INPUTS}
  if begun or INPUTS in names:
    there, here = assets.read_json(path), json.loads(text)
    changes = _changes(_computed(there), _computed(here))
    if changes and not begun:
      path.with_name(INPUTS).unlink(missing_ok=True)
    elif changes:
      shown = '\n  '.join(changes)
      raise ValueError(
        f'--workdir {str(path.parent)!r} belongs to a run with another config '
        f'(there -> here):\n  {shown}\nGive a new --workdir, or remove this '
        'one.'
      )
    if there == here:
      return
  with assets.atomic_path(path) as temp:
    temp.write_text(text, 'utf-8')


def _computed(config: Mapping[str, Any]) -> dict[str, Any]:
  """The config without what says only where, and in what parts, it runs."""
  step = dict(config.get('step') or {})
  step.pop('accumulation_steps', None)
  return {k: v for k, v in config.items() if k not in _WHERE} | {'step': step}


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
  """'section.key: old -> new' for all that differs."""
  old, new = dict(_flat(old)), dict(_flat(new))
  lines = []
  for key in sorted({**old, **new}):
    a, b = old.get(key, _ABSENT), new.get(key, _ABSENT)
    # NaN differs from itself; its text does not.
    if a != b and _show(a) != _show(b):
      lines.append(f'{key}: {_show(a)} -> {_show(b)}')
  return lines


def lines(values: Mapping[str, Any]) -> str:
  """A config as text, a line for each value."""
  return '\n'.join(f'{k}: {_show(v)}' for k, v in sorted(_flat(values)))


def _flat(values: Mapping[str, Any], prefix: str = ''):
  for key, value in values.items():
    if isinstance(value, dict) and value:
      yield from _flat(value, f'{prefix}{key}.')
    else:
      yield prefix + key, value


def _show(value) -> str:
  return 'nothing' if value is _ABSENT else json.dumps(value, sort_keys=True)


def is_finished(workdir: pathlib.Path) -> bool:
  """Whether the run has saved its trained parameters, in every process."""
  return processes.share((workdir / 'params').exists())


def logged(workdir: pathlib.Path) -> list[dict[str, Any]]:
  """The rows of metrics.jsonl, in every process; collective."""
  first = processes.first()
  path = workdir / 'metrics.jsonl'
  return processes.share(metrics.read_jsonl(path) if first else None)


def rewind(path: pathlib.Path, step: int) -> None:
  """Drops the rows beyond `step` from a metrics.jsonl, and a torn last line.

  They belong to steps that will run again. In process 0 alone. ValueError for
  a line before the last that is no row.
  """
  if not (processes.first() and path.exists()):
    return
  lines = path.read_bytes().rstrip(b'\n').split(b'\n')
  kept = []
  for number, line in enumerate(lines, 1):
    try:
      row_step = json.loads(line)['step']
    except (ValueError, TypeError, LookupError) as error:
      if number == len(lines):
        break
      raise assets.damaged(f'{path}:{number}', 'row', error) from error
    if row_step <= step:
      kept.append(line + b'\n')
  with assets.atomic_path(path) as temp:
    temp.write_bytes(b''.join(kept))


@contextlib.contextmanager
def sigterm() -> Iterator[Callable[[], bool]]:
  """Yields `stopping() -> bool`: whether a SIGTERM came since.

  A second one ends the process at once. The handler that was there before is
  back on exit. Main thread only.
  """
  received = []

  def handle(number, frame):
    del frame
    received.append(number)
    signal.signal(number, signal.SIG_DFL)

  before = signal.signal(signal.SIGTERM, handle)
  try:
    yield lambda: bool(received)
  finally:
    # None where C code had set it: Python can't put that back.
    signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
