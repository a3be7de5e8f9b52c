"""Claims a run's directory for one run of one config: lock and config.json."""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

from absl import logging

from dpo_jax import assets
from dpo_jax.training import config_diff, processes, run_inputs

_CONFIG, _LOCK = 'config.json', '.lock'
# Sections that do not change what is computed.
_PLACEMENT = ('mesh', 'distributed')
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
# A temporary name of `assets.atomic_path`.
_UNFINISHED = re.compile(r'\..+\.[0-9a-f]{16}\.tmp')


@contextlib.contextmanager
def claim(workdir: pathlib.Path, config: Mapping[str, Any]) -> Iterator[None]:
  """Locks `workdir` for this run and writes its config.json; unlocks on exit.

  Collective: process 0 holds the lock; all processes must see the directory.

  A run is resumed if its config.json equals `config`, apart from `mesh`,
  `distributed` and `step.accumulation_steps`; config.json is then replaced. A
  directory that holds at most inputs.json beside config.json is no run yet: it
  takes another config, and inputs.json is deleted. Temporary files that killed
  processes left are deleted.

  ValueError for a directory that cannot be written, that another process has
  locked, that belongs to a run with another config, or that holds files but no
  config.json.

  The kernel releases the lock when its process, and any forked from it, has
  ended. On a network file system the lock holds across hosts only where that
  system supports it (NFS 4, Lustre mounted with flock); elsewhere it holds on
  one host or, with a warning, not at all.
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


def is_finished(workdir: pathlib.Path) -> bool:
  """Whether the run has written its last output, params/. Collective."""
  return processes.share((workdir / 'params').exists())


def _check_shared(workdir: pathlib.Path) -> None:
  """ValueError in every process if one sees another directory."""
  path = workdir / _LOCK
  holder = path.read_text('utf-8') if processes.first() else None
  holder = processes.share(holder)
  seen = False
  for _ in range(50):  # A network file system may show the file late.
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
  with _open_lock(workdir) as lock:
    _acquire(lock, workdir)
    _delete_unfinished(workdir)
    _check_config(workdir / _CONFIG, config)
    yield


def _open_lock(workdir: pathlib.Path) -> TextIO:
  """The lock file; ValueError for a directory that cannot be written."""
  try:
    _check_is_run(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    # An existing lock file may be writable in a directory that is not.
    with tempfile.TemporaryFile(dir=workdir):
      return open(workdir / _LOCK, 'a+', encoding='utf-8')
  except OSError as error:
    raise ValueError(
      f'--workdir {str(workdir)!r} cannot be written ({error}). Give another '
      'directory.'
    ) from error


def _check_is_run(workdir: pathlib.Path) -> None:
  """ValueError for a directory that holds files but no run."""
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


def _acquire(lock: TextIO, workdir: pathlib.Path) -> None:
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


def _delete_unfinished(workdir: pathlib.Path) -> None:
  """Deletes temporary files and folders; a model's folder may be large."""
  for path in list(workdir.rglob('.*.tmp')):
    if _UNFINISHED.fullmatch(path.name):
      # A temporary file may be in a temporary folder that is already deleted.
      path.unlink(missing_ok=True) if not path.is_dir() else shutil.rmtree(path)


def _check_config(path: pathlib.Path, config: Mapping[str, Any]) -> None:
  """Compares with the config.json of a run that has begun, or writes it."""
  text = json.dumps(config, indent=2) + '\n'
  names = {p.name for p in path.parent.iterdir()}
  begun = not names <= {_CONFIG, _LOCK, run_inputs.NAME}
  if begun or run_inputs.NAME in names:
    there, here = assets.read_json(path), json.loads(text)
    changes = config_diff.changes(_computed(there), _computed(here))
    if changes and not begun:
      path.with_name(run_inputs.NAME).unlink(missing_ok=True)
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
  """The part of a config that changes what is computed."""
  step = dict(config.get('step') or {})
  step.pop('accumulation_steps', None)
  kept = {k: v for k, v in config.items() if k not in _PLACEMENT}
  return kept | {'step': step}
