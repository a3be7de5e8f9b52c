"""Real processes of `dpo_jax.train`: started, struck down, and compared."""

import contextlib
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from dpo_jax.training import metrics

ROOT = pathlib.Path(__file__).parent.parent.parent
PAGE = 'experiments/crashes/page.py'
# What a run that obeyed a SIGTERM exits with.
TERMINATED = 143
# Columns of metrics.jsonl that no two runs have alike.
TIMING = (
  'tokens_per_second',
  'pairs_per_second',
  'examples_per_second',
  'seconds_per_step',
  'mfu',
)
# Where, below a run's root, files are written under temporary names.
WRITTEN = (
  'run',
  'run/samples',
  'run/checkpoints',
  'cache/tokens',
  'cache/reference',
)
# Which write is struck: the caches' are among the first five.
NTH = (1, 2, 2, 3, 3, 4, 5, 7, 9)
# The last of these that a process has printed says how far it came.
PHASES = {
  '': 'start and imports',
  'Data source': 'data and weights',
  'reference: ': 'reference pass',
  'evaluating: ': 'first evaluation and samples',
  'training: ': 'steps, evaluations, samples, saves',
  'GB at most': 'final save',
}


class Place(NamedTuple):
  """A run: `root` holds run/, its working directory, cache/ and logs/.

  data: what `tests.tiny.write` made. jit: JAX's cache of compiled programs,
  which runs share, so that a start is cheap. flags: more of the command.
  """

  method: str
  data: pathlib.Path
  root: pathlib.Path
  jit: pathlib.Path
  flags: tuple[str, ...] = ()

  @property
  def workdir(self) -> pathlib.Path:
    return self.root / 'run'


class Blow(NamedTuple):
  """Which signal to send, `seconds` after the start.

  With `nth`, as long after the moment when the nth unfinished file is seen.
  """

  number: signal.Signals
  seconds: float
  nth: int | None = None


class Process:
  """A running command; `text()` is what it has printed."""

  def __init__(self, place: Place):
    logs = place.root / 'logs'
    logs.mkdir(parents=True, exist_ok=True)
    self.place = place
    self.log = logs / f'{len(list(logs.iterdir())):04d}.txt'
    command = [
      sys.executable,
      '-m',
      'dpo_jax.train',
      f'--config={PAGE}:{place.method}:{place.data}',
      f'--workdir={place.workdir}',
      *place.flags,
    ]
    env = os.environ | {
      'PYTHONPATH': str(ROOT),
      'DPO_JAX_CACHE': str(place.root / 'cache'),
      'JAX_PLATFORMS': 'cpu',
      'JAX_COMPILATION_CACHE_DIR': str(place.jit),
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
      'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
    }
    self._before = set(unfinished(place))
    self._known, self._kinds = set(self._before), []
    with self.log.open('w') as log:
      self.popen = subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=log, stderr=log
      )
    self.began = time.monotonic()

  def text(self) -> str:
    return self.log.read_text('utf-8', 'replace').replace('\r', '\n')

  def wait(self) -> int:
    return self.popen.wait()

  def wait_for_step(self, step: int) -> None:
    """Until the run has logged a row of this step or a later one."""
    path = self.place.workdir / 'metrics.jsonl'
    while self.popen.poll() is None:
      rows = metrics.read_jsonl(path) if path.exists() else []
      if rows and rows[-1]['step'] >= step:
        return
      time.sleep(0.01)
    raise RuntimeError(f'It ended before step {step}:\n{self.text()[-2000:]}')

  def strike(self, blow: Blow) -> int:
    """The exit status; the blow may come too late."""
    if blow.nth is None:
      self._wait_until(lambda: time.monotonic() > self.began + blow.seconds)
    else:
      self._wait_until(lambda: self._seen() >= blow.nth)
      time.sleep(blow.seconds)
    if self.popen.poll() is None:
      self.popen.send_signal(blow.number)
    return self.wait()

  def _seen(self) -> int:
    """How many unfinished files have been seen; notes the kind of the last."""
    for found in set(unfinished(self.place)) - self._known:
      self._known.add(found)
      self._kinds.append(found[0])
    return len(self._kinds)

  def _wait_until(self, due: Callable[[], bool]) -> None:
    while self.popen.poll() is None and not due():
      time.sleep(0.0002)

  def describe(self) -> dict:
    """Where it ended: phase, last step shown, what it was writing."""
    text = self.text()
    steps = re.findall(r'training: .*? (\d+)/\d+ \[', text)
    lines = [line.strip() for line in text.split('\n')]
    left = {kind for kind, *_ in set(unfinished(self.place)) - self._before}
    return {
      'seconds': round(time.monotonic() - self.began, 2),
      'phase': [name for mark, name in PHASES.items() if mark in text][-1],
      'step': int(steps[-1]) if steps else None,
      'last_write': self._kinds[-1] if self._kinds else None,
      'left': sorted(left),
      'last_line': next(filter(None, reversed(lines)), '')[-120:],
    }


def unfinished(place: Place) -> Iterator[tuple[str, str, int]]:
  """(kind, name, inode) of what lies there under a temporary name."""
  for folder in WRITTEN:
    # What is looked at may go at any time.
    with contextlib.suppress(FileNotFoundError):
      for entry in os.scandir(place.root / folder):
        if folder == 'run/checkpoints' and not entry.name.isdecimal():
          yield folder, entry.name, entry.inode()
        elif entry.name.endswith('.tmp'):
          # '.NAME.0123456789abcdef.tmp'; a cache's names say nothing.
          name = entry.name.strip('.').split('.')[0]
          kind = f'run/{name}' if folder == 'run' else folder
          yield kind, entry.name, entry.inode()


def whole(place: Place) -> float:
  """Runs the command to its end, undisturbed; the seconds that it took."""
  process = Process(place)
  status = process.wait()
  if status:
    raise RuntimeError(f'Exit status {status}:\n{process.text()[-3000:]}')
  return time.monotonic() - process.began


def under_fire(
  place: Place, choose: Callable[[], Blow], *, kills: int
) -> list[dict]:
  """Strikes and starts again, until a process ends by itself.

  choose: see `any_time` and `while_writing`. kills: at most so many. Returns
  what is known of each process that a signal ended. RuntimeError for one that
  ended in any other way.
  """
  struck = []
  while len(struck) < kills:
    process = Process(place)
    blow = choose()
    status = process.strike(blow)
    if not status:
      return struck
    if status not in (-blow.number, TERMINATED):
      raise RuntimeError(f'Exit status {status}:\n{process.text()[-3000:]}')
    facts = {
      'method': place.method,
      'signal': blow.number.name,
      'nth': blow.nth,
      'exit': status,
      **process.describe(),
    }
    struck.append(facts)
  whole(place)
  return struck


def any_time(rng: random.Random, seconds: float) -> Blow:
  """At any time of `seconds`, one of five a SIGTERM; or while writing.

  seconds: what an undisturbed run takes.
  """
  if rng.random() < 0.3:
    return while_writing(rng)
  number = signal.SIGTERM if rng.random() < 0.2 else signal.SIGKILL
  return Blow(number, rng.uniform(0, seconds))


def while_writing(rng: random.Random) -> Blow:
  """Just after the first unfinished file appears, or a later one."""
  seconds = rng.choice((0.0, rng.uniform(0, 0.003)))
  return Blow(signal.SIGKILL, seconds, rng.choice(NTH))


def differences(a: pathlib.Path, b: pathlib.Path) -> list[str]:
  """What two finished runs' directories do not have alike, bit for bit."""
  found = []
  for pattern in ('params/*', 'samples/*.jsonl'):
    there, here = (
      {p.name: p.read_bytes() for p in folder.glob(pattern)}
      for folder in (a, b)
    )
    for name in sorted({**there, **here}):
      if there.get(name) != here.get(name):
        found.append(pattern.replace('*', name, 1))
    if not there:
      found.append(f'no {pattern}')
  if timeless_rows(a) != timeless_rows(b):
    found.append('metrics.jsonl')
  there, here = checkpoint_steps(a), checkpoint_steps(b)
  if len(there) != len(here):
    found.append(f'checkpoints {there} and {here}')
  elif last_checkpoint(a) != last_checkpoint(b):
    found.append(f'checkpoint {max(there)} or {max(here)}')
  left = [p.name for p in b.rglob('.*.tmp')]
  return found + [f'{name} is left' for name in left]


def timeless_rows(workdir: pathlib.Path) -> list[str]:
  """The rows of metrics.jsonl as text, without what depends on the time."""
  rows = metrics.read_jsonl(workdir / 'metrics.jsonl')
  return [_timeless(row) for row in rows]


def _timeless(row: dict) -> str:
  timeless = {
    k: v
    for k, v in row.items()
    if k not in TIMING and not k.startswith('time/')
  }
  return json.dumps(timeless)


def checkpoint_steps(workdir: pathlib.Path) -> list[int]:
  """Steps of the checkpoints; ValueError for anything else that lies there."""
  return sorted(int(p.name) for p in (workdir / 'checkpoints').iterdir())


def last_checkpoint(workdir: pathlib.Path) -> tuple:
  """(step, record.json without times, leaves as bytes), as orbax reads it."""
  import orbax.checkpoint as ocp

  step = checkpoint_steps(workdir)[-1]
  path = (workdir / 'checkpoints' / str(step)).absolute()
  record = json.loads((path / 'record.json').read_text())
  record['progress']['window'].pop('seconds')
  record['metrics'] = _timeless(record['metrics'])
  with warnings.catch_warnings(), ocp.PyTreeCheckpointer() as checkpointer:
    warnings.simplefilter('ignore')  # No shardings are given.
    leaves = checkpointer.restore(path)
  return step, record, {k: np.asarray(x).tobytes() for k, x in leaves.items()}
