"""Make preference data: a model's completions of prompts, scored.

  python -m dpo_jax.pairs --config configs/imdb_pairs.py
  python -m dpo_jax.train --config configs/imdb_dpo.py

Each prompt is completed several times; each completion gets a score. The run's
directory (--workdir, by default runs/NAME_OF_THE_PAGE) gets pairs.jsonl, a line
for each prompt:

  {"prompt": text, "completions": [text, ...], "scores": [number, ...]}

which source='jsonl' reads as all pairs of different scores: six for four
completions. A completion that max_new_tokens ends gets an EOS in training, as
every completion does. The same command again goes on where it was stopped, and
ends with the same file, bit for bit.

It runs in one process, on one device. A page with a section such as
mesh=dict(fsdp=8) has that mesh's devices share the weights, or the prompts:
docs/mesh.md.
"""

import json
import os
import pathlib
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import tqdm
from absl import flags, logging

from dpo_jax import (
  assets,
  build,
  cli,
  compilation_cache,
  data,
  options,
  pages,
  registry,
  rewards,
  sampling,
  sampling_settings,
  tokenizers,
  weights,
)
from dpo_jax.data import order, store
from dpo_jax.evals import samples
from dpo_jax.training import run_inputs, run_lock

FILE = 'pairs.jsonl'


class Settings(NamedTuple):
  """The values of a page."""

  sampling: sampling_settings.SamplingSettings
  data: Mapping[str, Any]
  num_prompts: int
  skip_prompts: int
  num_completions: int
  reward: rewards.Reward


def check(
  *,
  data: Mapping[str, Any],
  num_prompts: int,
  num_completions: int,
  reward: str | Mapping[str, Any],
  skip_prompts: int = 0,
  **values,
) -> Settings:
  """Checks the values of a page; ValueError for what is wrong with them.

  data: a section as for training, whose prompts are taken, num_prompts of them
  after the first skip_prompts. reward: see
  `rewards.build`. values: see `sampling_settings.check`.
  """
  registry.check_at_least('num_prompts', num_prompts, 1)
  registry.check_at_least('num_completions', num_completions, 2)
  registry.check_integer('skip_prompts', skip_prompts, 0)
  sampling = registry.bind(
    sampling_settings.check, values, 'the config', registry.options_of(check)
  )()
  return Settings(
    sampling=sampling,
    data=data,
    num_prompts=num_prompts,
    skip_prompts=skip_prompts,
    num_completions=num_completions,
    reward=rewards.build(reward),
  )


def make(workdir: str | os.PathLike, config: Mapping[str, Any]) -> pathlib.Path:
  """Makes one config's pairs, or what is left of them; returns their file.

  ValueError for parts that do not fit, for a directory that another config or
  process has or that began with other inputs, and for it or a cache that can't
  be written.
  """
  workdir = assets.local_path(workdir, '--workdir')
  config = pages.plain(config)
  values = registry.bind(check, config, 'the config')()
  assets.check_cache()
  path = workdir / FILE
  with run_lock.claim(workdir, config):
    if path.exists():
      logging.info('These pairs are made: %s.', path)
      return path
    with run_inputs.of_run(workdir) as known:
      _make(values, path, known)
  return path


def _make(
  values: Settings, path: pathlib.Path, known: run_inputs.Inputs
) -> None:
  part = path.with_suffix('.part')
  s, model = values.sampling, values.sampling.model
  tokenizer = tokenizers.load(model.tokenizer_uri, model=model.uri)
  records = data.load(values.data, tokenizer=tokenizer)
  known.check_data(model.tokenizer_uri, tokenizer, data=records)
  prompts = choose_prompts(records, values.num_prompts, values.skip_prompts)
  if records.plain < len(records):
    logging.warning(
      'The prompts are conversations, and are written as the text of the chat '
      "template: read %s with control_tokens='tokens'.",
      path,
    )
  config = weights.read_config(model.uri)
  build.check_tokenizer(tokenizer, config)
  sampling.check(
    prompts,
    config,
    max_new_tokens=s.options['max_new_tokens'],
    eos_id=tokenizer.stop_ids,
  )
  if values.reward.source is not None:
    known.check_files('reward', values.reward.source, values.reward.files)
  values.reward([], [])
  _, params = build.load_model(s.mesh, model.uri)
  known.check_params('model.uri', model.uri, params)
  known.save()
  done = _prompts_done(part, s.part, len(prompts))
  bar = tqdm.tqdm(
    desc='sampling',
    unit='sample',
    total=len(prompts) * values.num_completions,
    initial=done * values.num_completions,
  )
  with bar, open(part, 'a', encoding='utf-8') as file:
    for begin in range(done, len(prompts), s.part):
      chosen = prompts[begin : begin + s.part]
      key = jax.random.fold_in(jax.random.key(s.seed), begin)
      rows = _rows(values, params, config, tokenizer, chosen, key, bar.update)
      lines = (json.dumps(row, ensure_ascii=False) + '\n' for row in rows)
      file.write(''.join(lines))
      file.flush()
  os.replace(part, path)


def choose_prompts(
  records: store.TokenRecords, num_prompts: int, skip_prompts: int = 0
) -> list[list[int]]:
  """Ids of the prompts after `skip_prompts`; ValueError if there are fewer.

  Those of a mixture are of all its parts: see `order.unshuffled`.
  """
  end = skip_prompts + num_prompts
  if len(records) < end:
    after = f' after skip_prompts={skip_prompts}' if skip_prompts else ''
    raise ValueError(
      f'num_prompts is {num_prompts}{after}, but the data has {len(records)}.'
    )
  chosen = order.unshuffled(records)[skip_prompts:end]
  return [records.prompt(i).tolist() for i in chosen]


def _prompts_done(part: pathlib.Path, at_once: int, num_prompts: int) -> int:
  """How many prompts `part` has: `at_once` times n, or all; cuts off others."""
  if not part.exists():
    return 0
  lines = part.read_bytes().split(b'\n')[:-1]
  done = len(lines)
  if done < num_prompts:
    done -= done % at_once
  kept = lines[:done]
  with assets.atomic_path(part) as temp:
    temp.write_bytes(b''.join(line + b'\n' for line in kept))
  return done


def _rows(
  values: Settings, params, config, tokenizer, prompts, key, progress
) -> list[dict[str, Any]]:
  """The lines of these prompts."""
  s, n = values.sampling, values.num_completions
  drawn = samples.generate(
    params,
    config,
    prompts,
    tokenizer,
    key=key,
    num_samples=n,
    batch_size=s.batch_size,
    progress=progress,
    compute=s.model.compute,
    **s.options,
  )
  scored = samples.score(drawn, values.reward)
  return [
    {
      'prompt': scored[k]['prompt'],
      'completions': [row['text'] for row in scored[k : k + n]],
      'scores': [row[values.reward.name] for row in scored[k : k + n]],
    }
    for k in range(0, len(scored), n)
  ]


def summary(path: pathlib.Path) -> str:
  """Prompts, pairs and scores of a file that was made."""
  scores = np.array([row['scores'] for row in samples.read(path)])
  better = scores[:, :, None] > scores[:, None, :]
  return (
    f'{path}: {len(scores)} prompts, {better.sum()} pairs, mean score '
    f'{scores.mean():.3f}, best of a prompt {scores.max(axis=1).mean():.3f}, '
    f'worst {scores.min(axis=1).mean():.3f}'
  )


OPTIONS = options.page(options.pairs_sections, check, sampling_settings.check)


def main(argv, page):
  if len(argv) > 1:
    sys.exit(f'Flags alone are expected; given: {" ".join(argv[1:])}')
  workdir = _WORKDIR.value or f'runs/{page.name}'
  compilation_cache.enable()
  print(summary(make(workdir, page.config)))


if __name__ == '__main__':
  logging.set_verbosity(logging.INFO)
  _WORKDIR = flags.DEFINE_string(
    'workdir', None, "The run's directory; default: runs/NAME_OF_THE_PAGE."
  )
  cli.run(main, OPTIONS)
