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

from experiments import scheduler
from experiments.imdb import jobs, places, results, tuning
from experiments.imdb.job import Job


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--reviews', help='URI of a folder')
  parser.add_argument('--scale', choices=places.SCALES, default='tiny')
  parser.add_argument('--blocks', type=int, nargs='+', default=[0, 1, 2])
  parser.add_argument('--ablations', action='store_true')
  scheduler.add_flags(parser)
  args = parser.parse_args()

  def known():
    # What tuning chose makes the final runs known.
    tuning.choose(args.scale)
    return jobs.of_scale(args.scale, args.blocks, args.reviews, args.ablations)

  scheduler.go_on(known, args, results.usage(), before=_check, after=_keep)


def _check(job: Job) -> None:
  if job.result and job.place:
    results.check_block(job)


def _keep(job: Job) -> None:
  if job.place is None:
    return
  if job.result is None:
    results.keep_stage(job)
  else:
    results.keep(job)


if __name__ == '__main__':
  main()
