"""The commands of a study: what each needs, which are missing, what they cost.

A study runs those that are missing in order, some at a time; a stopped one goes
on with the same command.
"""

import argparse
import dataclasses
import fnmatch
import graphlib
import os
import pathlib
import resource
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from dpo_jax import assets
from experiments import files


@dataclasses.dataclass(frozen=True)
class Job:
  """A command, and the path that it leaves when it has ended.

  command: arguments of Python. needs: names of jobs that come first. result:
  the file of its numbers, which is committed; None for a stage.
  """

  name: str
  command: list[str]
  leaves: pathlib.Path
  needs: tuple[str, ...] = ()
  result: pathlib.Path | None = None

  @property
  def missing(self) -> bool:
    """Whether it is to be run, if something asks for it."""
    return not (self.result or self.leaves).exists()


Jobs = Mapping[str, Job]


class Usage(NamedTuple):
  """What attempts at jobs used: a file for each job in a folder."""

  folder: pathlib.Path

  def read(self, name: str) -> dict[str, float]:
    """CPU seconds of all attempts at a job, and their peak memory; else 0."""
    path = self._path(name)
    none = {'cpu_seconds': 0, 'peak_gb': 0.0}
    return assets.read_json(path) if path.exists() else none

  def add(self, name: str, used: resource.struct_rusage) -> None:
    """Adds what an attempt used to that of the job's earlier ones."""
    before = self.read(name)
    seconds = round(used.ru_utime + used.ru_stime)
    # Linux counts KiB.
    peak = round(used.ru_maxrss * 1024 / 1e9, 2)
    found = {
      'cpu_seconds': before['cpu_seconds'] + seconds,
      'peak_gb': max(before['peak_gb'], peak),
    }
    files.write_json(self._path(name), found)

  def _path(self, name: str) -> pathlib.Path:
    return self.folder / f'{name}.json'


def add_flags(parser: argparse.ArgumentParser) -> None:
  """The flags that `go_on` reads."""
  parser.add_argument('--only', help='a pattern of names, of stages too')
  parser.add_argument(
    '--at_once', type=int, default=1, help='commands that run beside each other'
  )
  parser.add_argument('--list', action='store_true', help='only show commands')


def go_on(
  known: Callable[[], Jobs],
  args: argparse.Namespace,
  usage: Usage,
  *,
  before: Callable[[Job], None] = lambda job: None,
  after: Callable[[Job], None] = lambda job: None,
) -> None:
  """Runs what is missing, until nothing is; known: all jobs, asked each time.

  before, after: called when a job starts and when it has ended.
  """
  while True:
    jobs = known()
    names = [name for name, job in jobs.items() if _wanted(job, args.only)]
    left = to_run(jobs, names)
    if args.list:
      for job in left.values():
        _show(job)
    if args.list or not left:
      return
    run(left, args.at_once, usage, before=before, after=after)


def _wanted(job: Job, pattern: str | None) -> bool:
  if pattern is None:
    return job.result is not None
  return fnmatch.fnmatch(job.name, pattern)


def _show(job: Job) -> None:
  print(f'{job.name}: python {" ".join(job.command)}', flush=True)


def to_run(jobs: Jobs, names: Iterable[str]) -> dict[str, Job]:
  """Those of these jobs that are missing, and what they need that is.

  A run whose weights a missing job needs is made again, even if its numbers
  are there.
  """
  found = {}

  def add(name, needed):
    job = jobs[name]
    made = job.leaves.exists() if needed else not job.missing
    if name not in found and not made:
      found[name] = job
      for other in job.needs:
        add(other, True)

  for name in names:
    add(name, False)
  return found


class Running(NamedTuple):
  """A command that runs: in this slot of the cores."""

  job: Job
  slot: int


def run(
  left: Jobs,
  at_once: int,
  usage: Usage,
  *,
  before: Callable[[Job], None] = lambda job: None,
  after: Callable[[Job], None] = lambda job: None,
) -> None:
  """Runs jobs, each when all that it needs have ended.

  The first that fails ends the program, and those that run beside it.
  """
  order = graphlib.TopologicalSorter(
    {name: [n for n in job.needs if n in left] for name, job in left.items()}
  )
  order.prepare()
  ready, running = [], {}
  while order.is_active():
    ready += order.get_ready()
    # In the order of the study: what comes first there, starts first.
    ready.sort(key=list(left).index, reverse=True)
    slots = set(range(at_once)) - {r.slot for r in running.values()}
    for slot in sorted(slots):
      if ready:
        job = left[ready.pop()]
        before(job)
        running[_start(job, slot, at_once)] = Running(job, slot)
    ended, failed = _wait(running, usage)
    if failed:
      for pid in running:
        os.kill(pid, signal.SIGTERM)
      while running:
        _wait(running, usage)
      sys.exit(f'{ended.name} failed; the same command goes on.')
    after(ended)
    order.done(ended.name)


def _wait(running: dict[int, Running], usage: Usage) -> tuple[Job, bool]:
  """(a job that has ended, whether it failed); it does not run any more."""
  pid, status, used = os.wait4(-1, 0)
  ended = running.pop(pid).job
  usage.add(ended.name, used)
  return ended, os.waitstatus_to_exitcode(status) != 0


def _start(job: Job, slot: int, at_once: int) -> int:
  """Starts a command on every at_once-th core; returns its process id."""
  _show(job)
  cores = sorted(os.sched_getaffinity(0))
  # A child inherits the cores.
  os.sched_setaffinity(0, cores[slot::at_once] or cores)
  try:
    command = [sys.executable, *job.command]
    return os.posix_spawn(sys.executable, command, os.environ)
  finally:
    os.sched_setaffinity(0, cores)
