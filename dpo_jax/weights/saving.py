"""Parameter trees to folders in Hugging Face layout."""

import collections
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from jax.experimental import multihost_utils

from dpo_jax import assets, types
from dpo_jax.models import config as model_config
from dpo_jax.models import specs
from dpo_jax.weights import (
  families,
  hf_folder,
  inventory,
  safetensors_file,
  shards,
)

# Bytes of what the other processes are told of an error.
_MESSAGE = 1024


def check_savable(config: model_config.ModelConfig) -> None:
  """Raises the ValueError that `save` would for `config`; needs no parameters.

  Not all that `load` reads can be saved: a GGUF file may have biases where the
  config.json of no family can say so.
  """
  _plan(config)


def _plan(config: model_config.ModelConfig):
  """The family to save `config` as, its config.json and its tensors."""
  family, values = families.of_config(config)
  return family, values, list(inventory.stored(family.hf, config))


def save(
  path: str | os.PathLike,
  config: model_config.ModelConfig,
  params: types.Params,
  *,
  dtype: Any = np.float32,
  max_shard_bytes: int = 5_000_000_000,
  bos_id: int | None = None,
  eos_id: int | Sequence[int] | None = None,
) -> None:
  """Writes config.json and safetensors that `transformers` and `load` read.

  `bos_id` and `eos_id` go into config.json, where generation looks for them.
  Above `max_shard_bytes` the tensors are split over files with an index; host
  memory holds one tensor at a time. `path` appears whole or not at all.
  Where there are many processes, all call this; process 0 writes, to its
  `path`, and RuntimeError on the others where it can't.
  FileExistsError if it is there and not empty; ValueError if no family of
  checkpoints can express `config`, if `params` are not its parameters, or if
  float16 is asked for and cannot hold them.
  """
  family, values, groups = _plan(config)
  dtype = safetensors_file.check_dtype(np.dtype(dtype).name)
  flat = traverse_util.flatten_dict(params, sep='/')
  inventory.check(
    {name: spec.shape for name, spec in specs.flat_specs(config).items()},
    {name: tuple(leaf.shape) for name, leaf in flat.items()},
    'The parameter tree',
  )
  values |= {
    'architectures': [family.architecture],
    'model_type': family.name,
    'torch_dtype': dtype.name,
    'bos_token_id': bos_id,
    'eos_token_id': eos_id,
  }
  fetched = _fetch(groups, flat)

  def write():
    with assets.atomic_path(path) as temp:
      temp.mkdir()
      _write_json(temp / 'config.json', values)
      _write_shards(
        temp, groups, _stored(fetched, dtype), dtype, max_shard_bytes
      )

  if jax.process_count() == 1:
    write()
  else:
    _write_jointly(write, fetched)


class _NotFetchedError(Exception):
  """A part of the parameters could not be brought to the host."""


def _write_jointly(write: Callable[[], None], fetched: Iterator) -> None:
  """Process 0 writes what it fetches with the others; all end alike.

  But where a process can't fetch: then nothing is right any more.
  """
  error = None
  if jax.process_index() == 0:
    try:
      write()
    except _NotFetchedError:
      raise
    except Exception as caught:
      error = caught
  # Of what the others fetch, process 0 has parts, even if it can't write.
  collections.deque(fetched, maxlen=0)
  text = '' if error is None else f'{type(error).__name__}: {error}'
  text = text.encode()[:_MESSAGE].ljust(_MESSAGE, b'\0')
  text = multihost_utils.broadcast_one_to_all(np.frombuffer(text, np.uint8))
  if error is not None:
    raise error
  text = bytes(np.asarray(text)).rstrip(b'\0').decode(errors='replace')
  if text:
    raise RuntimeError(f'Process 0 did not save the parameters: {text}')


def _fetch(groups, flat) -> Iterator[tuple[inventory.Stored, list]]:
  """The tensors and the leaves, or layers of them, that each is made of."""
  for group in groups:
    leaves = [flat[name] for name in group[0].rule.ours]
    for tensor in group:
      try:
        parts = [shards.fetch(leaf, tensor.layer) for leaf in leaves]
      except Exception as error:
        raise _NotFetchedError(f'{tensor.name}: {error}') from error
      yield tensor, parts
      # Here and below: let go before the next one is fetched.
      del parts


def _stored(fetched, dtype) -> Iterator[np.ndarray]:
  for tensor, parts in fetched:
    with np.errstate(over='ignore'):
      stored = np.ascontiguousarray(tensor.rule.op.write(*parts), dtype)
    del parts
    if dtype == np.float16 and not np.isfinite(stored).all():
      raise ValueError(
        f'{tensor.name} has values that are not finite or beyond 65504, the '
        'largest of float16: take bfloat16 or float32.'
      )
    yield stored
    del stored


def _write_shards(
  folder: pathlib.Path,
  groups: list[list[inventory.Stored]],
  tensors: Iterator[np.ndarray],
  dtype: np.dtype,
  limit: int,
):
  shapes = {s.name: s.shape for group in groups for s in group}
  sizes = {n: math.prod(s) * dtype.itemsize for n, s in shapes.items()}
  shards, used = [[]], 0
  for name, size in sizes.items():
    if shards[-1] and used + size > limit:
      shards.append([])
      used = 0
    shards[-1].append(name)
    used += size
  weight_map = {}
  for i, names in enumerate(shards):
    file = f'model-{i + 1:05d}-of-{len(shards):05d}.safetensors'
    if len(shards) == 1:
      file = hf_folder.SINGLE
    part = {name: shapes[name] for name in names}
    safetensors_file.write(folder / file, part, dtype, tensors)
    weight_map |= dict.fromkeys(names, file)
  if len(shards) > 1:
    index = {'metadata': {'total_size': sum(sizes.values())}}
    _write_json(folder / hf_folder.INDEX, index | {'weight_map': weight_map})


def _write_json(path: pathlib.Path, values: dict):
  path.write_text(json.dumps(values, indent=2) + '\n', 'utf-8')
