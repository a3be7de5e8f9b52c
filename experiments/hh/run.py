"""Runs what is missing of the study of Anthropic-HH, in order.

  python -m experiments.hh.run --dialogues FOLDER --at_once 2
  python -m experiments.hh.run --only '*dpo*' --list

FOLDER: as for splits.py. A stopped run goes on. Each run and each judgement
leaves a file in results/SCALE, which is committed: with it, it is not missing,
whatever runs/hh holds. --judge names the language model that judges at the
scale 'paper' (docs/judges.md).
"""

import argparse
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from experiments import run_results, scheduler
from experiments.hh import pages
from experiments.scheduler import Job

RESULTS = pathlib.Path(__file__).parent / 'results'
USAGE = scheduler.Usage(pathlib.Path(pages.RUNS, 'usage'))
PAGE = 'experiments/hh/pages.py'
BETAS = (0.1, 0.5)
# Of best-of-N.
COUNTS = (1, 4, 16, 64)
MIXTURES = ('a_0', 'a_50', 'a_100')


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--dialogues', help='URI of a folder')
  parser.add_argument('--scale', choices=pages.SCALES, default='small')
  parser.add_argument('--judge', help='a language model, at the scale paper')
  scheduler.add_flags(parser)
  args = parser.parse_args()
  if args.scale == 'paper' and not args.judge:
    parser.error('--scale paper needs --judge, the name of a language model')
  found = jobs(args.scale, args.dialogues, args.judge)
  scheduler.go_on(lambda: found, args, USAGE, after=keep)


def jobs(
  scale: str, uri: str | None = None, judge: str | None = None
) -> dict[str, Job]:
  """name -> job; uri: of the dialogues. judge: a language model."""
  found = [
    _data(uri),
    *_runs(scale),
    *_best_of(scale, judge),
    *_judgements(scale, judge),
  ]
  return {job.name: job for job in found}


def _data(uri: str | None) -> Job:
  out = pathlib.Path(pages.part(''))
  command = ['-m', 'experiments.hh.splits', f'--out={out}']
  command += [f'--dialogues={uri}'] if uri else []
  return Job('data', command, out / 'a_multi')


def _train(
  scale: str,
  stage: str,
  *needs: str,
  run: str | None = None,
  changes: Mapping[str, Any] | None = None,
) -> Job:
  run = run or stage
  command = ['-m', 'dpo_jax.train', f'--config={PAGE}:{scale}/{stage}']
  command.append(f'--workdir={pages.folder(scale, run)}')
  command += [f'--config.{k}={v}' for k, v in (changes or {}).items()]
  leaves = pathlib.Path(pages.folder(scale, run), 'params')
  result = RESULTS / scale / f'{run}.json'
  return Job(f'{scale}/{run}', command, leaves, ('data', *needs), result)


def _runs(scale: str) -> Iterator[Job]:
  sft = f'{scale}/sft'
  yield _train(scale, 'sft')
  yield _train(scale, 'judge_model', sft)
  for beta in BETAS:
    yield _dpo(scale, f'dpo_{beta:g}', {'method.beta': beta})
  yield _train(scale, 'reward_model', sft)
  for part in (*MIXTURES, 'a_multi'):
    read = {'train_data.path': pages.part(part)}
    yield _dpo(scale, f'dpo_{part}', read)


def _dpo(scale: str, run: str, changes: Mapping[str, Any]) -> Job:
  return _train(scale, 'dpo', f'{scale}/sft', run=run, changes=changes)


def _judgements(scale: str, judge: str | None) -> Iterator[Job]:
  """Policies against the chosen answers of held-out dialogues."""
  policies = ['sft', *(f'dpo_{beta:g}' for beta in BETAS)]
  mixtures = [f'dpo_{part}' for part in MIXTURES]
  for run in (*policies, *mixtures):
    for part in ('held_helpful', 'held_harmless'):
      yield _judged(scale, run, part, judge)
  for run in (*policies, 'dpo_a_multi'):
    yield _judged(scale, run, 'held_multi', judge)


def _judged(scale: str, run: str, part: str, judge: str | None) -> Job:
  changes = {'a': pages.folder(scale, run), 'data.path': pages.part(part)}
  needs = ['data', f'{scale}/{run}']
  return _judge(scale, 'judged', f'{run}/{part}', changes, needs, judge)


def _judge(scale, stage, name, changes, needs, judge) -> Job:
  workdir = pages.folder(scale, f'judged/{name}')
  command = ['-m', 'dpo_jax.judge', f'--config={PAGE}:{scale}/{stage}']
  command.append(f'--workdir={workdir}')
  if scale == 'small':
    needs = [*needs, f'{scale}/judge_model']
  else:
    changes = {**changes, 'judge.model': judge}
    command.append('--yes')
  command += [f'--config.{k}={v}' for k, v in changes.items()]
  leaves = pathlib.Path(workdir, 'verdict.json')
  result = RESULTS / scale / 'judged' / f'{name}.json'
  return Job(f'{scale}/judged/{name}', command, leaves, tuple(needs), result)


def _best_of(scale: str, judge: str | None) -> Iterator[Job]:
  run = pages.folder(scale, 'best_of')
  command = ['-m', 'dpo_jax.pairs', f'--config={PAGE}:{scale}/best_of']
  needs = ('data', f'{scale}/sft', f'{scale}/reward_model')
  made = pathlib.Path(run, 'pairs.jsonl')
  name = f'{scale}/best_of'
  yield Job(name, [*command, f'--workdir={run}'], made, needs)
  command = ['-m', 'experiments.best_of', f'--completions={made}']
  command += ['--source=hh', f'--path={pages.part("held_helpful")}', '--counts']
  command += map(str, COUNTS)
  chosen = pathlib.Path(run, 'chosen.jsonl')
  yield Job(f'{name}/answers', command, chosen, ('data', name))
  for n in COUNTS:
    changes = {'a': f'{run}/best_{n}.jsonl'}
    needs = [f'{name}/answers']
    yield _judge(scale, 'chosen', f'best_of/{n}', changes, needs, judge)


def keep(job: Job) -> None:
  """Keeps the numbers of a job that has ended."""
  run_results.keep(job, USAGE)


if __name__ == '__main__':
  main()
