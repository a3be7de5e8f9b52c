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
  max_new_tokens    the longest that a sample can be
  temperature       1 samples the model itself, 0 takes the likeliest token
  top_k, top_p      only the k likeliest tokens; the likeliest that hold a
                    share p together; unset: all
  batch_size        prompts that are sampled together
  mesh.devices      how many share the sampling, each with whole weights;
                    mesh.fsdp, mesh.tensor: with parts of them (docs/mesh.md)

Most of the first seconds is compilation, once for each of a few prompt lengths;
JAX_COMPILATION_CACHE_DIR=FOLDER before the command keeps its results.
"""

import contextlib
import shutil
import sys
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
from absl import flags, logging

from dpo_jax import (
  assets,
  cli,
  defaults,
  models,
  options,
  registry,
  sampling,
  tokenizers,
)
from dpo_jax import parts as parts_lib
from dpo_jax.data import prompts as prompts_lib
from dpo_jax.evals import samples
from dpo_jax.sampling import filters
from dpo_jax.training import sharding


class Run(NamedTuple):
  """A config whose values are possible; `settings` are those of `sampling`."""

  uri: str
  tokenizer_uri: str
  compute: models.Compute
  seed: int
  num_samples: int
  batch_size: int
  settings: dict[str, Any]
  mesh: jax.sharding.Mesh


def check(
  *,
  seed: int,
  model: Mapping[str, Any],
  num_samples: int,
  max_new_tokens: int,
  temperature: float,
  top_k: int | None,
  top_p: float | None,
  batch_size: int,
  mesh: Mapping[str, Any] | None = None,
) -> Run:
  """Binds the values of a config; ValueError for what is wrong with them.

  mesh: options of `sharding.make_mesh`; None for one device.
  """
  for name, value, least in (
    ('seed', seed, 0),
    ('num_samples', num_samples, 1),
    ('max_new_tokens', max_new_tokens, 1),
    ('batch_size', batch_size, 1),
  ):
    registry.check_at_least(name, value, least)
  uri, tokenizer_uri, compute = registry.bind(_model, model, 'model')()
  settings = dict(temperature=temperature, top_k=top_k, top_p=top_p)
  filters.make_rule(**settings)
  settings['max_new_tokens'] = max_new_tokens
  make_mesh = registry.bind(sharding.make_mesh, mesh or {'devices': 1}, 'mesh')
  values = uri, tokenizer_uri, compute, seed, num_samples, batch_size, settings
  return Run(*values, make_mesh())


def _model(*, uri: str | None, tokenizer: str | None, dtype: str):
  if uri is None:
    raise ValueError('Which model? Set --config.model.uri.')
  return uri, tokenizer or uri, models.Compute(dtype=dtype)


def load(run: Run, tokenizer: tokenizers.Tokenizer, prompts: list[list[int]]):
  """(config, params) of a model; ValueError for what doesn't fit."""
  config, params = parts_lib.load_params(run, run.uri)
  parts_lib.check_tokenizer(tokenizer, config)
  room = config.max_positions - run.settings['max_new_tokens']
  for number, ids in enumerate(prompts, start=1):
    if len(ids) > room:
      raise ValueError(
        f'Prompt {number} has {len(ids)} tokens. The model has '
        f'{config.max_positions} positions, which with a max_new_tokens of '
        f'{run.settings["max_new_tokens"]} leaves {room}.'
      )
  return config, params


def sample(
  run: Run, params, config, tokenizer, prompts: list[list[int]]
) -> Iterator[samples.Rows]:
  """The rows of `batch_size` prompts at a time."""
  for batch, begin in enumerate(range(0, len(prompts), run.batch_size)):
    yield samples.generate(
      params,
      config,
      prompts[begin : begin + run.batch_size],
      tokenizer,
      key=jax.random.fold_in(jax.random.key(run.seed), batch),
      num_samples=run.num_samples,
      compute=run.compute,
      **run.settings,
    )


def chat(run: Run, params, config, tokenizer) -> None:
  """Reads what the user says from stdin, streams the answers to stdout."""
  with contextlib.suppress(ImportError):
    import readline  # noqa: F401, lets `input` edit its line.
  print('Ctrl-C stops an answer; /reset forgets; /quit, or Ctrl-D, ends.')
  history, key = [], jax.random.key(run.seed)
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
      answer = _answer(run, params, config, tokenizer, ids, answer_key)
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


def _answer(run: Run, params, config, tokenizer, ids: list[int], key) -> str:
  """Streams an answer to stdout and returns it."""
  settings = dict(run.settings)
  settings['max_new_tokens'] = min(
    settings['max_new_tokens'], config.max_positions - len(ids)
  )
  stream = sampling.stream(
    params,
    config,
    ids,
    key=key,
    eos_id=tokenizer.stop_ids,
    compute=run.compute,
    **settings,
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
  """(run, tokenizer, prompts): all that can be wrong before a model loads."""
  run = registry.bind(check, config, 'the config')()
  prompts = _given_prompts(arguments)
  if _CHAT.value and (_OUT.value or run.num_samples > 1):
    raise ValueError('--chat takes neither --out nor a num_samples over 1.')
  if _OUT.value and assets.local_path(_OUT.value, '--out').is_dir():
    raise ValueError(f'--out {_OUT.value!r} is a directory.')
  tokenizer = tokenizers.load(run.tokenizer_uri, model=run.uri)
  if _CHAT.value:
    tokenizer.apply_chat([{'role': 'user', 'content': 'Hello'}])
  ids = prompts_lib.encode(prompts, tokenizer, chat_format=_CHAT_FORMAT.value)
  return run, tokenizer, ids


def main(argv, page):
  run, tokenizer, prompts = _prepare(argv[1:], page.config)
  config, params = load(run, tokenizer, prompts)
  if _CHAT.value:
    return chat(run, params, config, tokenizer)
  rows = []
  width = shutil.get_terminal_size().columns
  for batch in sample(run, params, config, tokenizer, prompts):
    print(samples.show(batch, limit=len(batch), width=width), end='\n\n')
    rows += batch
  if _OUT.value:
    samples.write_jsonl(assets.local_path(_OUT.value, '--out'), rows)


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
  top = options.page(check, options.sampling_sections)
  cli.run(main, top, default=defaults.sampling)
