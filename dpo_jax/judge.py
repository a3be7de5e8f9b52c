"""Compare two policies: who wins, by a language model or by a reward.

  python -m dpo_jax.judge --config configs/judge.py --config.a=runs/dpo \
--config.b=runs/sft
  python -m dpo_jax.judge --votes=runs/judge/votes.jsonl

Sides a and b answer the same prompts: a run's directory or a model is sampled
at each of `temperatures`; a .jsonl file has rows of prompt and text; 'data' is
what the data has, the preferred completion. A judge says which answer is
better (docs/judges.md). The directory (--workdir, by default
runs/NAME_OF_THE_PAGE) gets the answers, votes.jsonl with a line for each
question that was asked, verdict.json with win rates and their intervals, and
verdict.png.

A judge behind an endpoint is asked only with --yes, after a line that says how
much. The same command again asks what is not answered yet.

--people asks people instead, on a page of this machine (--port), until Ctrl-C;
their votes are in people.jsonl, and where the judge has votes too, how often
they agree. --votes shows the statistics of a file of votes and does nothing
else.
"""

import contextlib
import functools
import logging as std_logging
import os
import pathlib
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags, logging

from dpo_jax import (
  answers,
  assets,
  cli,
  compilation_cache,
  judges,
  options,
  pages,
  registry,
)
from dpo_jax.evals import win_rates
from dpo_jax.sampling import filters
from dpo_jax.training import run_inputs, run_lock, sharding

VOTES, PEOPLE, VERDICT = 'votes.jsonl', 'people.jsonl', 'verdict.json'
# Options of a judge that change no vote: a begun directory takes others.
TRANSPORT = (
  'base_url',
  'concurrency',
  'key_variable',
  'prices',
  'retries',
  'timeout_s',
)
# Kinds of data that say which answer is preferred, or have only one.
KINDS = ('pairs', 'ranking', 'sft')


class Settings(NamedTuple):
  """The values of a page."""

  sides: tuple[str, str]
  prompts: answers.Prompts
  temperatures: Sequence[float]
  sampling: answers.Sampling
  judge: Any
  order: str


def check(
  *,
  a: str,
  b: str,
  judge: Mapping[str, Any],
  data: Mapping[str, Any] | None = None,
  num_prompts: int = 256,
  skip_prompts: int = 0,
  temperatures: Sequence[float] = (0.0,),
  max_new_tokens: int = 128,
  top_k: int | None = None,
  top_p: float | None = None,
  batch_size: int = 16,
  dtype: str = 'float32',
  order: str = 'random',
  seed: int = 0,
  mesh: Mapping[str, Any] | None = None,
) -> Settings:
  """Checks the values of a page; ValueError for what is wrong with them.

  a, b: see answers.py. data: a section as for training, whose prompts are
  answered by models; num_prompts distinct ones after the first skip_prompts. Of
  two files of answers at most so many are compared.
  order: of the two answers, 'random' by the seed, or 'both': each comparison is
  asked twice.
  """
  sides = (a, b)
  sampled = _check_sides(sides, data)
  registry.check_integers(
    ('num_prompts', num_prompts, 1),
    ('skip_prompts', skip_prompts, 0),
    ('max_new_tokens', max_new_tokens, 1),
    ('batch_size', batch_size, 1),
    ('seed', seed, 0),
  )
  temperatures = tuple(temperatures)
  if not temperatures or len(set(temperatures)) < len(temperatures):
    raise ValueError(
      f'temperatures is {temperatures}; expected different numbers, at least '
      'one.'
    )
  if len(temperatures) > 1 and not sampled:
    raise ValueError(
      f'temperatures is {temperatures}, but no side is a model to sample.'
    )
  for temperature in temperatures:
    filters.make_rule(temperature=temperature, top_k=top_k, top_p=top_p)
  registry.lookup(dict.fromkeys(judges.ORDERS), order, 'order')
  sampled_with = answers.Sampling(
    seed=seed,
    mesh=registry.bind(sharding.make_mesh, mesh or dict(devices=1), 'mesh')(),
    dtype=dtype,
    batch_size=batch_size,
    options=dict(max_new_tokens=max_new_tokens, top_k=top_k, top_p=top_p),
  )
  return Settings(
    sides=sides,
    prompts=answers.Prompts(data, num_prompts, skip_prompts),
    temperatures=temperatures,
    sampling=sampled_with,
    judge=judges.build(judge),
    order=order,
  )


def _check_sides(
  sides: tuple[str, str], data: Mapping[str, Any] | None
) -> list[str]:
  """The sides that are sampled; ValueError for sides that lack something."""
  for name, side in zip('ab', sides):
    if not side:
      raise ValueError(
        f"Side {name} is empty: give --config.{name}, a run's directory, a "
        f"model, a .jsonl file, or 'data'."
      )
  sampled = [side for side in sides if _is_model(side)]
  if answers.DATA in sides and not sampled:
    raise ValueError(
      f"One side is 'data', and no side is a model, whose tokenizer reads it: "
      f'a={sides[0]!r}, b={sides[1]!r}.'
    )
  if answers.DATA in sides and (data or {}).get('kind', KINDS[0]) not in KINDS:
    raise ValueError(
      f"One side is 'data', but data.kind={data['kind']!r} does not say which "
      f'answer is preferred; expected one of {", ".join(KINDS)}.'
    )
  if sampled and data is None:
    raise ValueError(f'{sampled[0]!r} needs prompts: the section `data`.')
  return sampled


def _is_model(side: str) -> bool:
  return side != answers.DATA and not answers.is_file(side)


def judge(
  workdir: str | os.PathLike, config: Mapping[str, Any], *, yes: bool = False
) -> dict[str, dict[str, Any]]:
  """Judges a page's sides, or what is left of it; returns win rates by group.

  A group is a temperature: 'T=0.25'. yes: whether a judge that costs something
  may be asked. ValueError for what does not fit together, and for a judge that
  cannot be asked: before anything is sampled or paid.
  """
  workdir = assets.local_path(workdir, '--workdir')
  config = pages.plain(config)
  s = registry.bind(check, config, 'the config')()
  s.judge.check()
  with _begun(workdir, config) as known:
    comparisons = _comparisons(s, workdir, known)
    asked = judges.questions(comparisons, order=s.order, seed=s.sampling.seed)
    with judges.File(workdir / VOTES) as votes:
      judges.ask(s.judge, asked, votes, yes=yes)
      found = judges.votes_of(s.judge, asked, votes.votes)
  groups = summary(found)
  a, b = map(_name, s.sides)
  print(win_rates.table(groups, a, b))
  win_rates.write(groups, workdir / VERDICT, a=a, b=b, judge=s.judge.name)
  return groups


@contextlib.contextmanager
def _begun(
  workdir: pathlib.Path, config: Mapping[str, Any]
) -> Iterator[run_inputs.Inputs]:
  """Claims the directory for this config and the inputs that it began with."""
  section = {n: x for n, x in config['judge'].items() if n not in TRANSPORT}
  claimed = run_lock.claim(workdir, {**config, 'judge': section})
  with claimed, run_inputs.of_run(workdir) as known:
    yield known


def _name(side: str) -> str:
  """The end of a path, as tables and plots show it."""
  return '/'.join(pathlib.PurePath(side).parts[-2:])


def people(
  workdir: str | os.PathLike, config: Mapping[str, Any], *, port: int = 0
) -> None:
  """Serves a page's comparisons to people until Ctrl-C; prints their verdict.

  port: 0: any that is free. ValueError as for `judge`; OSError for a port that
  is taken.
  """
  workdir = assets.local_path(workdir, '--workdir')
  config = pages.plain(config)
  s = registry.bind(check, config, 'the config')()
  with _begun(workdir, config) as known:
    comparisons = _comparisons(s, workdir, known)
    with judges.File(workdir / PEOPLE) as votes:
      seed = s.sampling.seed
      ballot = judges.people.Ballot(comparisons, votes, seed=seed)
      with judges.people.Server(ballot, port) as server:
        print(f'Compare answers at {server.url} ; Ctrl-C ends.', flush=True)
        with contextlib.suppress(KeyboardInterrupt):
          server.serve_forever()
      found = votes.votes
    print(win_rates.table(summary(found), *map(_name, s.sides)))
    if (workdir / VOTES).exists():
      by_judge = judges.read(workdir / VOTES)
      print(win_rates.agreement_table(found, by_judge))


def _comparisons(
  s: Settings, workdir: pathlib.Path, known: run_inputs.Inputs
) -> list[judges.Comparison]:
  """Of each prompt at each temperature; everything is read before sampling."""
  most = s.sampling.options['max_new_tokens']
  models, texts = {}, {}
  for name, side in zip('ab', s.sides):
    if _is_model(side):
      models[side] = answers.open_model(side, s.prompts, most)
      models[side].check(name, known)
    elif answers.is_file(side):
      texts[side] = answers.read_file(side)
      known.check_files(name, side, functools.partial(assets.files_at, side))
  if not models:
    first, second = (texts[side] for side in s.sides)
    answers.match(first, second, s.sides[1])
    chosen = list(first)[s.prompts.skip :][: s.prompts.count]
    texts = {side: {p: x[p] for p in chosen} for side, x in texts.items()}
  if answers.DATA in s.sides:
    texts[answers.DATA] = next(iter(models.values())).answers_of_data()
  first, second = (
    dict.fromkeys(models[side].texts(), '') if side in models else texts[side]
    for side in s.sides
  )
  answers.match(first, second, s.sides[1])
  if isinstance(s.judge, judges.ByReward):
    known.check_files('judge', s.judge.source, s.judge.files)
  known.save()
  found = []
  sides = [
    answers.of_model(models[side], s.sampling, s.temperatures, i, workdir)
    if side in models
    else [texts[side]] * len(s.temperatures)
    for i, side in enumerate(s.sides)
  ]
  for temperature, a, b in zip(s.temperatures, *sides):
    group = f'T={temperature:g}' if models else 'all'
    found += [judges.Comparison(group, p, a[p], b[p]) for p in a]
  return found


def summary(votes: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
  """Win rates of side a by group."""
  groups = {}
  for vote in votes:
    groups.setdefault(vote.get('group', 'all'), []).append(vote)
  return {
    name: win_rates.of_votes(found, [judges.outcome(v) for v in found])
    for name, found in groups.items()
  }


OPTIONS = options.page(options.judge_sections, check)


def main(argv, page):
  if len(argv) > 1:
    sys.exit(f'Flags alone are expected; given: {" ".join(argv[1:])}')
  if _VOTES.value:
    groups = summary(judges.read(assets.local_path(_VOTES.value, '--votes')))
    print(win_rates.table(groups, 'a', 'b'))
  elif page is None:
    raise ValueError('Which page? Give --config, or --votes=FILE.')
  else:
    compilation_cache.enable()
    workdir = _WORKDIR.value or f'runs/{page.name}'
    if _PEOPLE.value:
      for end in (signal.SIGINT, signal.SIGTERM):
        signal.signal(end, signal.default_int_handler)
      people(workdir, page.config, port=_PORT.value)
    else:
      judge(workdir, page.config, yes=_YES.value)


if __name__ == '__main__':
  logging.set_verbosity(logging.INFO)
  # A line for each question.
  std_logging.getLogger('httpx').setLevel(std_logging.WARNING)
  _WORKDIR = flags.DEFINE_string(
    'workdir',
    None,
    "The judgement's directory; default: runs/NAME_OF_THE_PAGE.",
  )
  _VOTES = flags.DEFINE_string(
    'votes', None, 'Show the statistics of this .jsonl of votes.'
  )
  _PEOPLE = flags.DEFINE_bool('people', False, 'Ask people, on a local page.')
  _PORT = flags.DEFINE_integer(
    'port', 8000, 'Of the page that --people serves.'
  )
  _YES = flags.DEFINE_bool('yes', False, 'Ask a judge that may cost something.')
  cli.run(main, OPTIONS, optional=True)
