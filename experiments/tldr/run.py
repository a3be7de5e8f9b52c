"""Runs what is missing of the summarisation study, in order, and shows tables.

  OPENAI_API_KEY=... python -m experiments.tldr.run --judge MODEL
  OPENAI_API_KEY=any python -m experiments.tldr.run --scale tiny \\
    --judge MODEL --base_url http://127.0.0.1:8000/v1

MODEL answers at an OpenAI-compatible endpoint (docs/judges.md), at --base_url
if it is your own. --articles: the folder of news.py, without which there are no
summaries of news. A stopped run goes on. Each run and each judgement leaves a
file in results/SCALE.
"""

import argparse
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

from experiments import run_results, scheduler, win_rate_tables
from experiments.scheduler import Job
from experiments.tldr import pages

RESULTS = pathlib.Path(__file__).parent / 'results'
USAGE = scheduler.Usage(pathlib.Path(pages.RUNS, 'usage'))
PAGE = 'experiments/tldr/pages.py'
POLICIES = ('sft', 'preferred_ft', 'dpo', 'ppo')
QUESTIONS = {
  'simple': 'posts, simple question',
  'concise': 'posts, concise question',
}


class Judge(NamedTuple):
  """A language model, and the address of its endpoint if it is your own."""

  model: str | None = None
  base_url: str | None = None

  @property
  def flags(self) -> list[str]:
    """Of a page with the section `judge`."""
    found = [f'--config.judge.model={self.model}', '--yes']
    if self.base_url:
      found.append(f'--config.judge.base_url={self.base_url}')
    return found


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--scale', choices=pages.SCALES, default='paper')
  parser.add_argument('--judge', help='the name of a language model')
  parser.add_argument('--base_url', help="its endpoint's address")
  parser.add_argument('--articles', help='URI of a folder')
  scheduler.add_flags(parser)
  args = parser.parse_args()
  if not args.judge and not args.list:
    parser.error('--judge, the name of a language model, is needed')
  found = jobs(args.scale, Judge(args.judge, args.base_url), args.articles)
  scheduler.go_on(lambda: found, args, USAGE, after=keep)
  judged = win_rate_tables.read(RESULTS / args.scale)
  temperatures = pages.get_config(f'{args.scale}/concise').temperatures
  shown = win_rate_tables.by_temperature(judged, QUESTIONS, temperatures)
  print('\n'.join([*shown, '', *win_rate_tables.best_of(judged)]))


def jobs(
  scale: str, judge: Judge, articles: str | None = None
) -> dict[str, Job]:
  """name -> job."""
  found = [*_data(scale, articles), *_runs(scale), *_best_of(scale, judge)]
  news = ['news'] if articles else []
  for run in POLICIES:
    for stage in (*QUESTIONS, *news):
      found.append(_judged(scale, run, stage, judge))
  return {job.name: job for job in found}


def _data(scale: str, articles: str | None) -> Iterator[Job]:
  if scale == 'tiny':
    out = pathlib.Path(pages.RUNS, 'data')
    command = ['-m', 'experiments.tldr.rows', f'--out={out}']
    yield Job('data', command, out / 'comparisons')
  if articles:
    command = ['-m', 'experiments.tldr.news', f'--articles={articles}']
    leaves = pathlib.Path(pages.NEWS)
    yield Job('news', [*command, f'--out={leaves}'], leaves)


def _runs(scale: str) -> Iterator[Job]:
  data = ('data',) if scale == 'tiny' else ()
  for stage, *needs in (
    ('sft',),
    ('preferred_ft', 'sft'),
    ('dpo', 'sft'),
    ('reward_model', 'sft'),
    ('ppo', 'sft', 'reward_model'),
  ):
    folder = pages.folder(scale, stage)
    command = ['-m', 'dpo_jax.train', f'--config={PAGE}:{scale}/{stage}']
    yield Job(
      f'{scale}/{stage}',
      [*command, f'--workdir={folder}'],
      pathlib.Path(folder, 'params'),
      (*data, *(f'{scale}/{x}' for x in needs)),
      RESULTS / scale / f'{stage}.json',
    )


def _best_of(scale: str, judge: Judge) -> Iterator[Job]:
  folder = pages.folder(scale, 'best_of')
  name, made = f'{scale}/best_of', pathlib.Path(folder, 'pairs.jsonl')
  command = ['-m', 'dpo_jax.pairs', f'--config={PAGE}:{name}']
  needs = (f'{scale}/sft', f'{scale}/reward_model')
  yield Job(name, [*command, f'--workdir={folder}'], made, needs)
  posts, _ = pages.DATA[scale]
  counts = [1, pages.BEST_OF[scale]]
  command = ['-m', 'experiments.best_of', f'--completions={made}']
  command += ['--source=tldr_sft', f'--path={posts}', '--counts']
  chosen = pathlib.Path(folder, 'chosen.jsonl')
  yield Job(f'{name}/answers', [*command, *map(str, counts)], chosen, (name,))
  for n in counts:
    flags = [f'--config.a={folder}/best_{n}.jsonl', *judge.flags]
    yield _judge(scale, 'chosen', f'best_of/{n}', flags, f'{name}/answers')


def _judged(scale: str, run: str, stage: str, judge: Judge) -> Job:
  flags = [f'--config.a={pages.folder(scale, run)}', *judge.flags]
  needs = [f'{scale}/{run}', *(['news'] if stage == 'news' else [])]
  return _judge(scale, stage, f'{run}/{stage}', flags, *needs)


def _judge(
  scale: str, stage: str, name: str, flags: list[str], *needs: str
) -> Job:
  folder = pages.folder(scale, f'judged/{name}')
  command = ['-m', 'dpo_jax.judge', f'--config={PAGE}:{scale}/{stage}']
  return Job(
    f'{scale}/judged/{name}',
    [*command, f'--workdir={folder}', *flags],
    pathlib.Path(folder, 'verdict.json'),
    needs,
    RESULTS / scale / 'judged' / f'{name}.json',
  )


def keep(job: Job) -> None:
  """Keeps the numbers of a job that has ended."""
  run_results.keep(job, USAGE)


if __name__ == '__main__':
  main()
