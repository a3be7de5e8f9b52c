"""Runs what is missing of the sentiment study, in order.

  python -m experiments.imdb.run --reviews FOLDER --scale tiny --blocks 0
  python -m experiments.imdb.run --scale tiny --only 'tiny/0/dpo_*' --list

FOLDER: as for splits.py. A stopped run goes on. Each finished run leaves a file
in results/, which is committed: with it a run is not missing, whatever
runs/imdb holds. Tuning comes first. --ablations: the blocks have those of
ablations.py in place of the methods' grid. --at_once: how many commands run at
the same time, each on its share of the cores. --list shows the commands instead
of running them.
"""

import argparse
import fnmatch
import graphlib
import os
import signal
import sys
from collections.abc import Mapping
from typing import NamedTuple

from experiments.imdb import jobs, places, results, tuning
from experiments.imdb.job import Job


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--reviews', help='URI of a folder')
  parser.add_argument('--scale', choices=places.SCALES, default='tiny')
  parser.add_argument('--blocks', type=int, nargs='+', default=[0, 1, 2])
  parser.add_argument('--ablations', action='store_true')
  parser.add_argument('--only', help='a pattern of names, of stages too')
  parser.add_argument('--at_once', type=int, default=1)
  parser.add_argument('--list', action='store_true')
  args = parser.parse_args()
  while True:
    known = jobs.of_scale(args.scale, args.blocks, args.reviews, args.ablations)
    names = [name for name, x in known.items() if _wanted(x, args.only)]
    left = jobs.to_run(known, names)
    if args.list:
      for job in left.values():
        _show(job)
    if args.list or not left:
      return
    run(left, args.at_once)
    # What tuning chose makes the final runs known.
    tuning.choose(args.scale)


def _wanted(job: Job, pattern: str | None) -> bool:
  if pattern is None:
    return job.result is not None
  return fnmatch.fnmatch(job.name, pattern)


def _show(job: Job) -> None:
  print(f'{job.name}: python {" ".join(job.command)}', flush=True)


class Running(NamedTuple):
  """A command that runs: in this slot of the cores."""

  job: Job
  slot: int


def run(left: Mapping[str, Job], at_once: int) -> None:
  """Runs jobs, each when all that it needs have ended; keeps their numbers.

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
        running[_start(job, slot, at_once)] = Running(job, slot)
    ended, failed = _wait(running)
    if failed:
      for pid in running:
        os.kill(pid, signal.SIGTERM)
      while running:
        _wait(running)
      sys.exit(f'{ended.name} failed; the same command goes on.')
    _keep(ended)
    order.done(ended.name)


def _wait(running: dict[int, Running]) -> tuple[Job, bool]:
  """(a job that has ended, whether it failed); it does not run any more."""
  pid, status, usage = os.wait4(-1, 0)
  ended = running.pop(pid).job
  results.add_usage(ended.name, usage)
  return ended, os.waitstatus_to_exitcode(status) != 0


def _keep(job: Job) -> None:
  if job.place is None:
    return
  if job.result is None:
    results.keep_stage(job)
  else:
    results.keep(job)


def _start(job: Job, slot: int, at_once: int) -> int:
  """Starts a command on every at_once-th core; returns its process id."""
  if job.result and job.place:
    results.check_block(job)
  _show(job)
  cores = sorted(os.sched_getaffinity(0))
  # A child inherits the cores.
  os.sched_setaffinity(0, cores[slot::at_once] or cores)
  try:
    command = [sys.executable, *job.command]
    return os.posix_spawn(sys.executable, command, os.environ)
  finally:
    os.sched_setaffinity(0, cores)


if __name__ == '__main__':
  main()
