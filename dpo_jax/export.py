"""Export a model as a folder in Hugging Face layout, for any other tool.

  python -m dpo_jax.export runs/quickstart --out=exported
  python -m dpo_jax.export runs/quickstart --out=exported --checkpoint=best
  python -m dpo_jax.export model.gguf --out=exported --dtype=bfloat16

What is exported is the directory of a run, or weights: a folder in Hugging Face
layout, a .gguf file, or a URI of either. The folder gets the weights as
safetensors, config.json, the tokenizer with its chat template,
generation_config.json and README.md, a model card; for a run also
training_config.py, the page that trains it again. `transformers` and dpo_jax
read it.

  --out             the new folder; one that is there must be empty
  --dtype           float32, bfloat16 or float16: what the weights are stored as
  --checkpoint      which parameters of a run: params (those it ended with),
                    latest, best (by checkpoints.best) or a step; default:
                    params, or latest where the run has not ended
  --tokenizer       where the tokenizer is; default: with the model
  --max_shard_size  larger weights are split over files of this size: 5GB, 500MB

The folder appears when it is complete. Memory of the host holds the weights
once; no accelerator is needed, on whatever devices a run was trained.
"""

import json
import math
import pathlib
import re
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags, logging

from dpo_jax import (
  assets,
  cli,
  models,
  registry,
  settings,
  tokenizers,
  weights,
)
from dpo_jax import parts as parts_lib
from dpo_jax.evals import card
from dpo_jax.training import checkpoints, inputs, manifest, metrics

_ROWS = 'metrics.jsonl'
_UNITS = {'KB': 10**3, 'MB': 10**6, 'GB': 10**9, 'TB': 10**12}


class Run(NamedTuple):
  """Where a model comes from: the directory of a run, its config.json.

  checkpoint: 'params', 'latest', 'best' or a step.
  """

  folder: pathlib.Path
  config: dict[str, Any]
  checkpoint: str


class Source(NamedTuple):
  """What is exported. uri: weights that have the config of the model.

  They are the model itself, but for a checkpoint of `run`.
  """

  uri: str
  tokenizer_uri: str
  run: Run | None


def choose(
  source: str, *, checkpoint: str | None = None, tokenizer: str | None = None
) -> Source:
  """What a command line names; ValueError if that can't be exported.

  FileNotFoundError if there is nothing.
  """
  path = pathlib.Path(source).expanduser()
  if path.name == 'params' and (path.parent / _ROWS).is_file():
    path, checkpoint = path.parent, checkpoint or 'params'
  config = _run_config(path)
  if config is None:
    if checkpoint is not None:
      raise ValueError(
        f'--checkpoint is of a run, and {source!r} is no directory of one.'
      )
    return Source(source, tokenizer or source, None)
  if not (path / _ROWS).is_file():
    raise ValueError(f'{source!r} has no {_ROWS}. {_saved(path)}')
  ended = (path / 'params').is_dir()
  checkpoint = checkpoint or ('params' if ended else 'latest')
  if checkpoint == 'params' and not ended:
    raise ValueError(
      f'{source!r} has no params: the run has not ended. {_saved(path)}'
    )
  if checkpoint != 'params' and not manifest.steps_in(path / 'checkpoints'):
    raise ValueError(f'{source!r} has no checkpoints. {_saved(path)}')
  uri, own = str(path / 'params'), str(path / 'params')
  if not ended:
    uri = config['model']['uri']
    own = config['model'].get('tokenizer') or uri
  return Source(uri, tokenizer or own, Run(path, config, checkpoint))


def _run_config(folder: pathlib.Path) -> dict[str, Any] | None:
  """The config of a run; None for what is no directory of one."""
  if not (folder / 'config.json').is_file():
    return None
  values = assets.read_json(folder / 'config.json')
  is_run = isinstance(values.get('model'), Mapping) and 'method' in values
  return values if is_run else None


def _saved(run: pathlib.Path) -> str:
  """What there is of a run."""
  steps = ', '.join(map(str, sorted(manifest.steps_in(run / 'checkpoints'))))
  names = ', '.join(sorted(p.name for p in run.iterdir()))
  there = f'checkpoints of steps {steps}' if steps else names
  return f'It holds: {there}.'


def export(
  source: Source,
  out: str | pathlib.Path,
  *,
  dtype: str = 'float32',
  max_shard_bytes: int = 5 * 10**9,
) -> None:
  """Writes the folder `out`, whole or not at all.

  ValueError for what can't be exported, FileExistsError where `out` is there
  and not empty: both before the weights are read, but for values that float16
  can't hold.
  """
  out = assets.local_path(out, '--out')
  check_out(out)
  registry.lookup(weights.DTYPES, dtype, 'dtype')
  folder = source.run.folder if source.run else pathlib.Path(source.uri)
  with inputs.of_run(folder):  # The hub's repositories as the run read them.
    _export(source, out, dtype, max_shard_bytes)


def _export(source: Source, out: pathlib.Path, dtype, max_shard_bytes) -> None:
  config = weights.read_config(source.uri)
  tokenizer = tokenizers.load(source.tokenizer_uri, model=source.uri)
  parts_lib.check_tokenizer(tokenizer, config)
  weights.check_savable(config)
  params, step = _params(source, config, dtype)
  shape = (
    f'{models.num_params(config):,} parameters in {config.num_layers} layers, '
    f'stored as {dtype}'
  )
  with assets.atomic_path(out) as temp:
    weights.save(
      temp,
      config,
      params,
      dtype=np.dtype(dtype),
      max_shard_bytes=max_shard_bytes,
      bos_id=tokenizer.bos_id,
      eos_id=tokenizer.eos_token_id,
    )
    tokenizer.save(temp)
    _write(
      temp / 'generation_config.json',
      json.dumps(_generation(tokenizer), indent=2) + '\n',
    )
    if source.run is None:
      text = card.of_weights(source.uri, name=out.name, shape=shape)
    else:
      rows = metrics.read_jsonl(source.run.folder / _ROWS)
      # The parameters that a run ended with are those of its last step.
      step = rows[-1]['step'] if step is None else step
      about = dict(data=_data(source.run.config), shape=shape, step=step)
      text = card.of_run(source.run.config, rows, name=out.name, **about)
      page = card.page(source.run.config, name=out.name)
      _write(temp / card.PAGE, page)
    _write(temp / 'README.md', text)


def check_out(out: pathlib.Path) -> None:
  """FileExistsError for what an export would not replace."""
  if out.exists() and (not out.is_dir() or any(out.iterdir())):
    raise FileExistsError(
      f'--out {str(out)!r} is there and not empty; give a new folder.'
    )


def _params(source: Source, config: models.ModelConfig, dtype: str):
  """(parameters, the step of the checkpoint that they are of or None)."""
  run = source.run
  if run is None or run.checkpoint == 'params':
    # Rounded to float16 here, what it can't hold would be infinite.
    held = np.float32 if dtype == 'float16' else np.dtype(dtype)
    _, params = weights.load(source.uri, dtype=held)
    return params, None
  saves = run.config['checkpoints']
  like = jax.eval_shape(lambda: models.init(jax.random.key(0), config))
  step, params = checkpoints.read_params(
    run.folder / 'checkpoints',
    run.checkpoint,
    like,
    best=saves.get('best'),
    best_mode=saves.get('best_mode', 'min'),
  )
  return params, step


def _data(config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
  """What a run trained and was evaluated on."""
  names = ('data', 'train_data', 'eval_data')
  sections = settings.data_sections(*map(config.get, names))
  return dict(zip(('Training data', 'Held-out data'), sections))


def _generation(tokenizer: tokenizers.Tokenizer) -> dict[str, Any]:
  """What `transformers` starts, ends and fills texts with."""
  pad = tokenizer.special_tokens.get('pad_token')
  pad_id = None if pad is None else tokenizer.vocabulary.token_to_id(pad)
  values = {
    'bos_token_id': tokenizer.bos_id,
    'eos_token_id': tokenizer.eos_token_id,
    # Without one it takes EOS, and says so in every call.
    'pad_token_id': tokenizer.eos_id if pad_id is None else pad_id,
  }
  return {name: value for name, value in values.items() if value is not None}


def _write(path: pathlib.Path, text: str) -> None:
  path.write_text(text, 'utf-8')


def parse_size(text: str) -> int:
  """Bytes of '5GB' or '500MB', powers of 1000; ValueError for other text."""
  match = re.fullmatch(r'(\d+(?:\.\d+)?) ?([KMGT]B)', text.strip().upper())
  size = math.floor(float(match[1]) * _UNITS[match[2]]) if match else 0
  if not size:
    raise ValueError(
      f'--max_shard_size is {text!r}; expected a size such as 5GB or 500MB.'
    )
  return size


def main(argv):
  if len(argv) != 2:
    given = ' '.join(argv[1:]) or 'nothing'
    sys.exit(f"A run's directory or weights are expected; given: {given}.")
  if _OUT.value is None:
    raise ValueError('Where to? Set --out.')
  limit = parse_size(_MAX_SHARD_SIZE.value)
  source = choose(
    argv[1], checkpoint=_CHECKPOINT.value, tokenizer=_TOKENIZER.value
  )
  export(source, _OUT.value, dtype=_DTYPE.value, max_shard_bytes=limit)
  print(f'{argv[1]} is exported to {_OUT.value}.')


if __name__ == '__main__':
  logging.set_verbosity(logging.WARNING)
  _OUT = flags.DEFINE_string('out', None, 'The new folder.')
  _DTYPE = flags.DEFINE_string(
    'dtype', 'float32', 'float32, bfloat16 or float16.'
  )
  _CHECKPOINT = flags.DEFINE_string(
    'checkpoint', None, 'Of a run: params, latest, best or a step.'
  )
  _TOKENIZER = flags.DEFINE_string('tokenizer', None, 'Its folder or file.')
  _MAX_SHARD_SIZE = flags.DEFINE_string(
    'max_shard_size', '5GB', 'Of one file of weights.'
  )
  cli.run(main)
