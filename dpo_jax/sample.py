"""Sample from a model, or talk to it.

  python -m dpo_jax.sample --config.model.uri=runs/quickstart/params 'The film'
  python -m dpo_jax.sample --config.model.uri=... --prompts=prompts.jsonl
  python -m dpo_jax.sample --config.model.uri=... --chat

A prompt is text that the model continues. A .jsonl or .json file has rows as
training reads them (docs/data.md), whose answers are left out: {"prompt": text
or messages} is enough. A line of a .txt file is a text. Messages are rendered
with the model's chat template, and so is text with --chat_format.

--config.NAME=VALUE sets one of these; configs/sample.py is a page of them:

  model.uri         a folder in Hugging Face layout, a .gguf file, or a URI
  model.tokenizer   where the tokenizer is; default: with the model
  model.dtype       float32 or bfloat16
  seed              the same seed gives the same samples
  num_samples       of each prompt
  reward            scores the samples: docs/rewards.md
  max_new_tokens    the longest that a sample can be
  temperature       1 samples the model itself, 0 takes the likeliest token
  top_k, top_p      only the k likeliest tokens; the likeliest that hold a
                    share p together; unset: all
  batch_size        prompts that are sampled together
  mesh.devices      how many share the sampling, each with whole weights;
                    mesh.fsdp, mesh.tensor: with parts of them (docs/mesh.md)

--config.reward=vader --best_of=N draws N samples of each prompt and keeps the
one with the highest reward. --curve=FILE.json also writes what the best of 1,
2, 4, ... N is worth, and FILE.png as a picture of it.

Most of the first seconds is compilation, once for each of a few prompt lengths.
Its results are kept for the next command in the cache folder ($DPO_JAX_CACHE or
~/.cache/dpo_jax), up to 1 GiB; JAX_ENABLE_COMPILATION_CACHE=0 keeps none.
"""

import contextlib
import shutil
import sys
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags, logging

from dpo_jax import (
  assets,
  build,
  cli,
  compilation_cache,
  defaults,
  options,
  registry,
  rewards,
  sampling,
  sampling_settings,
  tokenizers,
)
from dpo_jax.data import prompts as prompts_lib
from dpo_jax.evals import best_of_n, samples


class Settings(NamedTuple):
  """The values of a page."""

  sampling: sampling_settings.SamplingSettings
  num_samples: int
  reward: rewards.Reward | None


def check(
  *,
  num_samples: int,
  reward: str | Mapping[str, Any] | None = None,
  **values,
) -> Settings:
  """Checks the values of a page; ValueError for what is wrong with them.

  reward: see `rewards.build`; None: none. values: see
  `sampling_settings.check`.
  """
  registry.check_at_least('num_samples', num_samples, 1)
  sampling = registry.bind(
    sampling_settings.check, values, 'the config', registry.options_of(check)
  )()
  reward = None if reward is None else rewards.build(reward)
  return Settings(sampling, num_samples, reward)


def choosing(values: Settings, best_of: int) -> Settings:
  """The settings with `best_of` samples per prompt, to choose one of them.

  ValueError without a reward to choose by, for samples that would all be equal,
  and where more than one is to be kept.
  """
  registry.check_at_least('--best_of', best_of, 1)
  if values.reward is None:
    raise ValueError(
      '--best_of needs a reward to choose by: --config.reward=NAME, one of '
      f'{", ".join(rewards.REWARDS)}.'
    )
  if values.num_samples > 1:
    raise ValueError(
      f'--best_of={best_of} keeps one sample of each prompt, but num_samples '
      f'is {values.num_samples}; leave it at 1.'
    )
  if best_of > 1 and values.sampling.options['temperature'] == 0:
    raise ValueError(
      f'--best_of={best_of} needs samples that differ, but temperature is 0.'
    )
  return values._replace(num_samples=best_of)


def load(
  s: sampling_settings.SamplingSettings,
  tokenizer: tokenizers.Tokenizer,
  prompts: list[list[int]],
):
  """(config, params) of a model; ValueError for what doesn't fit."""
  config, params = build.load_model(s.mesh, s.model.uri)
  build.check_tokenizer(tokenizer, config)
  max_new_tokens = s.options['max_new_tokens']
  room = config.max_positions - max_new_tokens
  for number, ids in enumerate(prompts, start=1):
    if len(ids) > room:
      raise ValueError(
        f'Prompt {number} has {len(ids)} tokens. The model has '
        f'{config.max_positions} positions, which with a max_new_tokens of '
        f'{max_new_tokens} leaves {room}.'
      )
  return config, params


def sample(
  values: Settings, params, config, tokenizer, prompts: list[list[int]]
) -> Iterator[samples.Rows]:
  """The rows of one part of the prompts after another, with scores if asked."""
  s = values.sampling
  for begin in range(0, len(prompts), s.part):
    rows = samples.generate(
      params,
      config,
      prompts[begin : begin + s.part],
      tokenizer,
      key=jax.random.fold_in(jax.random.key(s.seed), begin),
      num_samples=values.num_samples,
      batch_size=s.batch_size,
      compute=s.model.compute,
      **s.options,
    )
    yield samples.score(rows, values.reward)


def chat(
  s: sampling_settings.SamplingSettings, params, config, tokenizer
) -> None:
  """Reads what the user says from stdin, streams the answers to stdout."""
  with contextlib.suppress(ImportError):
    import readline  # noqa: F401, lets `input` edit its line.
  print('Ctrl-C stops an answer; /reset forgets; /quit, or Ctrl-D, ends.')
  history, key = [], jax.random.key(s.seed)
  while (said := _said()) != '/quit':
    if said == '/reset':
      history = []
    elif said.startswith('/'):
      print(f'No command {said!r}; there are /reset and /quit.')
    elif said:
      asked = [*history, {'role': 'user', 'content': said}]
      try:
        ids = _ask(asked, config, tokenizer)
      except ValueError as error:
        print(error)
        continue
      key, answer_key = jax.random.split(key)
      answer = _answer(s, params, config, tokenizer, ids, answer_key)
      history = [*asked, {'role': 'assistant', 'content': answer}]


def _said() -> str:
  try:
    return input('> ' if sys.stdin.isatty() else '').strip()
  except (EOFError, KeyboardInterrupt):
    return '/quit'


def _ask(asked, config, tokenizer) -> list[int]:
  """Ids of a conversation; ValueError if it leaves no room for an answer."""
  prompt = prompts_lib.Prompt(asked, 'this conversation')
  (ids,) = prompts_lib.encode([prompt], tokenizer, chat_format=True)
  if len(ids) >= config.max_positions:
    raise ValueError(
      f'The conversation is {len(ids)} tokens long, and the model has '
      f'{config.max_positions} positions: /reset.'
    )
  return ids


def _answer(s, params, config, tokenizer, ids: list[int], key) -> str:
  """Streams an answer to stdout and returns it."""
  options = dict(s.options)
  options['max_new_tokens'] = min(
    options['max_new_tokens'], config.max_positions - len(ids)
  )
  stream = sampling.stream(
    params,
    config,
    ids,
    key=key,
    eos_id=tokenizer.stop_ids,
    compute=s.model.compute,
    **options,
  )
  answer, shown = [], ''
  with contextlib.suppress(KeyboardInterrupt):
    for token in stream:
      if token not in tokenizer.stop_ids:
        answer.append(token)
      # A character can take several tokens; a part of one is U+FFFD.
      whole = tokenizer.decode(answer, start=False).rstrip('\ufffd')
      print(whole[len(shown) :], end='', flush=True)
      shown = whole
  text = tokenizer.decode(answer, start=False)
  print(text[len(shown) :])
  return text


def _given_prompts(arguments: list[str]) -> list[prompts_lib.Prompt]:
  """What the command line asks for; [] for a chat."""
  ways = [bool(arguments), bool(_PROMPTS.value), _CHAT.value]
  if sum(ways) != 1:
    raise ValueError(
      f'{"No prompts" if not any(ways) else "Too many ways"}: give prompts as '
      'arguments, or a file as --prompts, or --chat.'
    )
  if _PROMPTS.value:
    return prompts_lib.read(_PROMPTS.value)
  return [
    prompts_lib.Prompt(x, f'prompt {i}')
    for i, x in enumerate(arguments, start=1)
  ]


def _prepare(arguments: list[str], config: Mapping[str, Any]):
  """(settings, tokenizer, prompts): found wrong before a model loads."""
  values = registry.bind(check, config, 'the config')()
  prompts = _given_prompts(arguments)
  _check_flags(values, len(prompts))
  if _BEST_OF.value is not None:
    values = choosing(values, _BEST_OF.value)
  model = values.sampling.model
  tokenizer = tokenizers.load(model.tokenizer_uri, model=model.uri)
  if _CHAT.value:
    tokenizer.apply_chat([{'role': 'user', 'content': 'Hello'}])
  ids = prompts_lib.encode(prompts, tokenizer, chat_format=_CHAT_FORMAT.value)
  if values.reward is not None:
    values.reward([], [])
  return values, tokenizer, ids


def _check_flags(values: Settings, num_prompts: int) -> None:
  best_of, curve = _BEST_OF.value, _CURVE.value
  alone = (_OUT.value, best_of, curve, values.reward)
  if _CHAT.value and (values.num_samples > 1 or any(alone)):
    raise ValueError(
      '--chat takes no --out, --best_of, --curve or reward, and no num_samples '
      'over 1.'
    )
  for name, path in (('--out', _OUT.value), ('--curve', curve)):
    if path and assets.local_path(path, name).is_dir():
      raise ValueError(f'{name} {path!r} is a directory.')
  if curve and best_of is None:
    raise ValueError('--curve needs --best_of, the largest number of samples.')
  if curve and not curve.endswith('.json'):
    raise ValueError(
      f'--curve is {curve!r}; expected a name that ends in .json.'
    )
  if curve and num_prompts < 2:
    raise ValueError('--curve needs two prompts or more for its intervals.')


OPTIONS = options.page(
  options.sampling_sections, check, sampling_settings.check
)


def main(argv, page):
  values, tokenizer, prompts = _prepare(argv[1:], page.config)
  compilation_cache.enable()
  config, params = load(values.sampling, tokenizer, prompts)
  if _CHAT.value:
    return chat(values.sampling, params, config, tokenizer)
  rows, scores = [], []
  width = shutil.get_terminal_size().columns
  name = None if values.reward is None else values.reward.name
  for batch in sample(values, params, config, tokenizer, prompts):
    if _BEST_OF.value is not None:
      scores += [row[name] for row in batch]
      batch = best_of_n.choose(batch, values.num_samples, name)
    shown = samples.show(batch, reward=name, limit=len(batch), width=width)
    print(shown, end='\n\n')
    rows += batch
  if _OUT.value:
    samples.write_jsonl(assets.local_path(_OUT.value, '--out'), rows)
  if _CURVE.value:
    scores_BxM = np.reshape(scores, (len(prompts), values.num_samples))
    path = assets.local_path(_CURVE.value, '--curve')
    best_of_n.write(best_of_n.make_curve(scores_BxM, name), path)


if __name__ == '__main__':
  logging.set_verbosity(logging.WARNING)
  _PROMPTS = flags.DEFINE_string(
    'prompts', None, 'A .jsonl or .txt file with one prompt a line.'
  )
  _CHAT = flags.DEFINE_bool('chat', False, 'Talk to the model.')
  _CHAT_FORMAT = flags.DEFINE_bool(
    'chat_format', False, "Whether a text prompt is a user's message."
  )
  _OUT = flags.DEFINE_string('out', None, 'Write the samples to this .jsonl.')
  _BEST_OF = flags.DEFINE_integer(
    'best_of', None, 'Keep, of so many samples of a prompt, the best by reward.'
  )
  _CURVE = flags.DEFINE_string(
    'curve', None, 'Write the reward by number of samples to this .json.'
  )
  cli.run(main, OPTIONS, default=defaults.sampling)
