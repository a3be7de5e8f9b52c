"""Iterative DPO: rounds of sampling, labelling and training, in one command.

  python -m dpo_jax.iterative --config iterative_dpo --config.model=MODEL ...

Each round samples completions of new prompts from the last round's policy,
scores them (`dpo_jax.pairs`), and trains that policy on the pairs
(`dpo_jax.train`). The page has both of their pages, as `pairs` and `training`,
and

  model      URI of the policy that the first round samples
  rounds     how many
  reference  'start': the first policy in every round (W. Xiong et al.,
             arXiv:2312.11456); 'last': the policy that the round starts from
             (R. Y. Pang et al., arXiv:2404.19733)

A round's directory, round_1 and on in --workdir, holds those of the two
commands. The same command resumes a stopped run in the middle of a round;
finished rounds stay as they are. The last one's train/params is the result.
It runs in one process, as `dpo_jax.pairs` does.
"""

import os
import pathlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from absl import flags, logging

from dpo_jax import (
  assets,
  cli,
  data,
  option_types,
  options,
  pages,
  pairs,
  registry,
  settings,
  tokenizers,
  train,
)
from dpo_jax.training import run_inputs, run_lock

Options = Mapping[str, Any]
REFERENCES = ('start', 'last')


class Round(NamedTuple):
  """The pages of a round, and where it lies."""

  folder: pathlib.Path
  pairs: dict[str, Any]
  training: dict[str, Any]


def check(
  *,
  model: str | None,
  rounds: int,
  reference: str,
  pairs: Options,
  training: Options,
) -> None:
  """ValueError for what is wrong with a page; see `run`.

  pairs, training: pages of `dpo_jax.pairs` and `dpo_jax.train`, without the
  model and the pairs' file, which each round has of its own.
  """
  registry.check_integer('rounds', rounds, 1)
  registry.lookup(dict.fromkeys(REFERENCES), reference, 'reference')
  if model is None:
    raise ValueError('Which model? Set --config.model to its URI.')
  for name, section, option in (
    ('pairs', pairs, 'model.uri'),
    ('training', training, 'model.uri'),
    ('training', training, 'model.reference'),
    ('training', training, 'data.path'),
    ('pairs', pairs, 'skip_prompts'),
  ):
    value = section
    for part in option.split('.'):
      value = value.get(part) if isinstance(value, Mapping) else None
    if value:
      raise ValueError(
        f'{name}.{option} is {value!r}, but each round has its own: leave it '
        'out.'
      )


def run(workdir: str | os.PathLike, config: Options) -> train.Result:
  """Runs all rounds, or what is left of them; the last round's result.

  workdir, config: as for `train.train`. ValueError before any long work for
  what is wrong with the page, and what the two commands raise.
  """
  workdir = assets.local_path(workdir, '--workdir')
  config = pages.plain(config)
  registry.bind(check, config, 'the config')()
  every = list(rounds_of(workdir, config))
  for each in every:
    registry.bind(pairs.check, each.pairs, 'pairs')()
    settings.of(each.training)
  if not (every[-1].folder / 'pairs' / pairs.FILE).exists():
    with run_inputs.of_run(every[0].folder / 'pairs'):
      _check_prompts(every)
  with run_lock.claim(workdir, config):
    results = []
    for number, each in enumerate(every, start=1):
      logging.info('Round %d of %d: %s.', number, len(every), each.folder)
      pairs.make(each.folder / 'pairs', each.pairs)
      results.append(train.train(each.folder / 'train', each.training))
  logging.info('%s', summary(results))
  return results[-1]


def _check_prompts(every: list[Round]) -> None:
  """ValueError if the data has too few prompts for all rounds."""
  first = registry.bind(pairs.check, every[0].pairs, 'pairs')()
  model = first.sampling.model
  tokenizer = tokenizers.load(model.tokenizer_uri, model=model.uri)
  there = len(data.load(first.data, tokenizer=tokenizer))
  needed = len(every) * first.num_prompts
  if there < needed:
    raise ValueError(
      f'{len(every)} rounds of {first.num_prompts} prompts (rounds x '
      f'pairs.num_prompts) take {needed}, but the data has {there}.'
    )


def rounds_of(workdir: pathlib.Path, config: Options) -> Iterator[Round]:
  """The rounds of a page; all but the first read what the last one left."""
  policy = config['model']
  for number in range(config['rounds']):
    folder = workdir / f'round_{number + 1}'
    made = folder / 'pairs' / pairs.FILE
    of_pairs, training = config['pairs'], config['training']
    is_start = number == 0 or config['reference'] == 'last'
    yield Round(
      folder,
      of_pairs
      | {
        'model': of_pairs['model'] | {'uri': str(policy)},
        'skip_prompts': number * of_pairs['num_prompts'],
      },
      training
      | {
        'model': training['model']
        | {
          'uri': str(policy),
          'reference': None if is_start else config['model'],
        },
        'data': training['data'] | {'source': 'jsonl', 'path': str(made)},
        # The policy of a later round is not the reference.
        'check_start': training['check_start'] and is_start,
      },
    )
    policy = folder / 'train' / 'params'


def summary(results: list[train.Result]) -> str:
  """A table of the held-out metrics at the end of each round."""
  names = ('eval/loss', 'eval/rewards/accuracies', 'eval/rewards/margins')
  lines = [f'{"round":8}' + ''.join(f'{name:>26}' for name in names)]
  for number, result in enumerate(results, start=1):
    cells = (
      f'{result.metrics.get(name, float("nan")):26.4f}' for name in names
    )
    lines.append(f'{number:<8}' + ''.join(cells))
  return '\n'.join(lines)


def _sections(values: Options) -> dict[str, option_types.Section]:
  del values
  return {'pairs': pairs.OPTIONS, 'training': options.TRAINING}


OPTIONS = options.page(_sections, check)


def main(argv, page):
  if len(argv) > 1:
    sys.exit(f'Flags alone are expected; given: {" ".join(argv[1:])}')
  result = run(_WORKDIR.value or f'runs/{page.name}', page.config)
  print(f'The policy of the last round: {result.params}')


if __name__ == '__main__':
  logging.set_verbosity(logging.INFO)
  _WORKDIR = flags.DEFINE_string(
    'workdir', None, "The rounds' directory; default: runs/NAME_OF_THE_PAGE."
  )
  cli.run(main, OPTIONS)
