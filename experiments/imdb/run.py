"""Runs what is missing of the sentiment study, in order.

  python -m experiments.imdb.run --reviews FOLDER --scale tiny
  python -m experiments.imdb.run --scale tiny --only 'dpo*' --list

FOLDER: as for splits.py. A stopped run goes on. Each finished run leaves
results/SCALE/NAME.json, which is committed: with it a run is not missing,
whatever runs/imdb holds. --list shows the commands instead of running them.
"""

import argparse
import fnmatch
import itertools
import pathlib
import resource
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

from experiments.imdb import pages, results, tuning

PAGE = 'experiments/imdb/pages.py'
# method -> (what is varied, its values), as in the paper.
GRID = {
  'dpo': ('method.beta', (0.05, 0.1, 1.0, 5.0)),
  'ppo': ('method.target_kl', (3.0, 6.0, 9.0, 12.0)),
  'ppo_rm': ('method.target_kl', (3.0, 6.0, 9.0, 12.0)),
  'unlikelihood': ('method.alpha', (0.05, 0.1, 0.5, 1.0)),
  'preferred_ft': (None, (None,)),
  'rloo': ('method.target_kl', (6.0,)),
  'online_dpo': ('method.beta', (0.1,)),
}


class Job(NamedTuple):
  """A command, and the path that it leaves when it has ended.

  result: of its numbers; None for a stage that others read.
  """

  name: str
  command: list[str]
  leaves: pathlib.Path
  result: pathlib.Path | None = None

  @property
  def missing(self) -> bool:
    return not (self.result or self.leaves).exists()


def stages(scale: str, reviews: str | None) -> Iterator[Job]:
  """What the methods read; the first ones are of the scale 'tiny' alone."""
  root = pathlib.Path(pages.RUNS)

  def module(name, *options):
    return ['-m', f'experiments.imdb.{name}', *options]

  of_reviews = ['--reviews', reviews] if reviews else []
  yield Job(
    'data',
    module('splits', *of_reviews, '--out', f'{root}/data'),
    root / 'data' / 'evaluate',
  )
  yield Job(
    'tiny/start',
    module('start', '--data', f'{root}/data', '--out', f'{root}/tiny/start'),
    root / 'tiny' / 'start',
  )
  for stage in ('sft', 'labels_1', 'labels_2'):
    yield _trained('tiny', stage)
  yield _completed('tiny', 'pairs')
  yield Job('reward', module('scale'), root / 'reward' / 'params')
  if scale != 'tiny':
    yield _trained(scale, 'sft')
    yield _completed(scale, 'pairs')
  for part in ('tune', 'evaluate'):
    yield _completed(scale, part)
  yield _trained(scale, 'reward_model')


def _trained(
  scale: str, stage: str, name=None, changes=None, result=None
) -> Job:
  name = name or stage
  folder = pathlib.Path(pages.RUNS) / scale / name
  command = [
    '-m',
    'dpo_jax.train',
    f'--config={PAGE}:{scale}/{stage}',
    f'--workdir={folder}',
  ]
  command += [f'--config.{k}={v}' for k, v in (changes or {}).items()]
  return Job(f'{scale}/{name}', command, folder / 'params', result)


def _completed(scale: str, part: str) -> Job:
  folder = pathlib.Path(pages.RUNS) / scale / part
  command = ['-m', 'dpo_jax.pairs', f'--config={PAGE}:{scale}/{part}']
  command.append(f'--workdir={folder}')
  return Job(f'{scale}/{part}', command, folder / 'pairs.jsonl')


def tuned(scale: str) -> Iterator[Job]:
  """Every configuration of every method, on prompts for tuning alone."""
  for method in tuning.METHODS:
    for name, changes in tuning.configurations(method):
      name = f'tuning/{name}'
      changes |= {
        'seed': tuning.SEED,
        'eval_data.path': f'{pages.RUNS}/{scale}/tune/pairs.jsonl',
        **_half(pages.get_config(f'{scale}/{method}')),
      }
      yield _trained(scale, method, name, changes, results.path_of(scale, name))


def _half(page) -> dict:
  """Half the length of a page, in epochs or in steps."""
  if page.epochs is not None:
    return {'epochs': page.epochs / 2}
  return {'steps': page.steps // 2}


def finals(scale: str, seeds: list[int]) -> Iterator[Job]:
  """The final runs, with the values that tuning chose."""
  for method, (option, values) in GRID.items():
    for seed, value in itertools.product(seeds, values):
      name, changes = method, tuning.chosen(scale, method) | {'seed': seed}
      if option:
        name, changes[option] = f'{method}_{value:g}', value
      name = f'{name}_s{seed}'
      yield _trained(scale, method, name, changes, results.path_of(scale, name))


def run(job: Job) -> None:
  """Runs a job, and keeps its numbers; ends the program where it fails."""
  before = resource.getrusage(resource.RUSAGE_CHILDREN)
  _show(job)
  done = subprocess.run([sys.executable, *job.command])
  after = resource.getrusage(resource.RUSAGE_CHILDREN)
  seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
  results.add_usage(job.name, seconds)
  if done.returncode:
    sys.exit(f'{job.name} failed; the same command goes on.')
  if job.result:
    results.write(job.result, job.name, job.leaves.parent, job.command)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--reviews', help='URI of a folder')
  parser.add_argument('--scale', choices=pages.SCALES, default='tiny')
  parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
  parser.add_argument('--only', default='*', help='a pattern of names')
  parser.add_argument('--list', action='store_true')
  args = parser.parse_args()
  do = _show if args.list else run

  def go(jobs):
    left = [j for j in jobs if j.missing and fnmatch.fnmatch(j.name, args.only)]
    for job in left:
      do(job)

  if _complete(args.scale, args.seeds):
    print(f'All results of {args.scale} are there.')
    return
  go(stages(args.scale, args.reviews))
  go(tuned(args.scale))
  if not any(job.missing for job in tuned(args.scale)):
    tuning.choose(args.scale)
  if tuning.path_of(args.scale).exists():
    go(finals(args.scale, args.seeds))
  else:
    print('The final runs begin when tuning has ended.')


def _complete(scale: str, seeds: list[int]) -> bool:
  """Whether no result is missing, so that no stage is needed."""
  chosen = tuning.path_of(scale).exists()
  return chosen and not any(job.missing for job in finals(scale, seeds))


def _show(job: Job) -> None:
  print(f'{job.name}: python {" ".join(job.command)}', flush=True)


if __name__ == '__main__':
  main()
