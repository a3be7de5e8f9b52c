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

import dataclasses
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
  build,
  cli,
  data_sections,
  methods,
  models,
  registry,
  run_dir,
  tokenizers,
  types,
  weights,
)
from dpo_jax.evals import model_card
from dpo_jax.rewards import reward_model
from dpo_jax.training import run_inputs

_UNITS = {'KB': 10**3, 'MB': 10**6, 'GB': 10**9, 'TB': 10**12}


class Source(NamedTuple):
  """What is exported: weights, or the parameters of a run.

  uri: weights with the architecture of the model; they are the model itself,
  but for a checkpoint of a run.
  """

  uri: str
  tokenizer_uri: str
  saved: run_dir.Saved | None


def choose(
  source: str, *, checkpoint: str | None = None, tokenizer: str | None = None
) -> Source:
  """What a command line names; ValueError if that can't be exported."""
  path = pathlib.Path(source).expanduser()
  is_params = path.name == run_dir.PARAMS and run_dir.find(path.parent)
  if is_params and (path.parent / run_dir.METRICS).is_file():
    path, checkpoint = path.parent, checkpoint or run_dir.PARAMS
  run = run_dir.find(path)
  if run is None:
    if checkpoint is not None:
      raise ValueError(
        f'--checkpoint is of a run, and {source!r} is no directory of one.'
      )
    return Source(source, tokenizer or source, None)
  run.rows()  # The model card's; refused before the weights are read.
  saved = run.choose(checkpoint)
  own = saved.uri if run.ended else run.tokenizer_uri
  return Source(saved.uri, tokenizer or own, saved)


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
  saved = source.saved
  folder = saved.run.folder if saved else pathlib.Path(source.uri)
  with run_inputs.of_run(
    folder
  ):  # The hub's repositories as the run read them.
    _export(source, out, dtype, max_shard_bytes)


def _export(source: Source, out: pathlib.Path, dtype, max_shard_bytes) -> None:
  config = weights.read_config(source.uri)
  if source.saved is not None:
    head = methods.head(source.saved.run.config['method'])
    config = dataclasses.replace(config, head=head)
  tokenizer = tokenizers.load(source.tokenizer_uri, model=source.uri)
  build.check_tokenizer(tokenizer, config)
  if config.head == 'scalar':
    tokenizer = tokenizer.with_distinct_pad()
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
      pad_id=tokenizer.pad_id,
    )
    tokenizer.save(temp)
    if config.head == 'logits':
      _write(
        temp / 'generation_config.json',
        json.dumps(_generation(tokenizer), indent=2) + '\n',
      )
    _copy_normalisation(source, temp)
    if source.saved is None:
      text = model_card.of_weights(
        source.uri, name=out.name, shape=shape, head=config.head
      )
    else:
      run = source.saved.run
      rows = run.rows()
      # The parameters that a run ended with are those of its last step.
      step = rows[-1]['step'] if step is None else step
      about = dict(data=_data(run.config), shape=shape, step=step)
      text = model_card.of_run(run.config, rows, name=out.name, **about)
      _write(temp / model_card.PAGE, model_card.page(run.config, name=out.name))
    _write(temp / 'README.md', text)


def _copy_normalisation(source: Source, temp: pathlib.Path) -> None:
  """Copies what normalises the rewards of these very parameters."""
  if source.saved is None or source.saved.is_params:
    folder = assets.resolve(source.uri)
    found = reward_model.read_normalisation(folder) if folder.is_dir() else None
    if found is not None:
      _write(temp / reward_model.FILE, found.to_json())


def check_out(out: pathlib.Path) -> None:
  """FileExistsError for what an export would not replace."""
  if out.exists() and (not out.is_dir() or any(out.iterdir())):
    raise FileExistsError(
      f'--out {str(out)!r} is there and not empty; give a new folder.'
    )


def _params(source: Source, config: models.ModelConfig, dtype: str):
  """(parameters, the step of the checkpoint that they are of or None)."""
  saved = source.saved
  if saved is None or saved.is_params:
    # Rounded to float16 here, what it can't hold would be infinite.
    held = np.float32 if dtype == 'float16' else np.dtype(dtype)
    _, params = weights.load(source.uri, dtype=held)
    return params, None
  like = jax.eval_shape(lambda: models.init(jax.random.key(0), config))
  step, state = saved.read(types.TrainState(None, like, None, None, None))
  return state.params, step


def _data(config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
  """What a run trained and was evaluated on."""
  names = ('data', 'train_data', 'eval_data')
  found = data_sections.train_and_held_out(*map(config.get, names))
  return dict(zip(('Training data', 'Held-out data'), found))


def _generation(tokenizer: tokenizers.Tokenizer) -> dict[str, Any]:
  """What `transformers` starts, ends and fills texts with."""
  pad_id = tokenizer.pad_id
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
