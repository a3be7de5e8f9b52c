"""Saves parameter trees as folders in Hugging Face layout."""

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
  device_transfer,
  expected_tensors,
  families,
  hf_folder,
  safetensors_file,
)

# Bytes of an error message that process 0 sends to the other processes.
_MESSAGE_BYTES = 1024


def check_savable(config: model_config.ModelConfig) -> None:
  """The ValueError that `save` raises for `config`; needs no parameters.

  Not every loaded model can be saved: a GGUF file may have biases that no
  family's config.json can express.
  """
  _plan(config)


def _plan(config: model_config.ModelConfig):
  """(family to save as, fields of config.json, tensors by `TensorMap`)."""
  family, values = families.of_config(config)
  return family, values, list(expected_tensors.list_tensors(family.hf, config))


def save(
  path: str | os.PathLike,
  config: model_config.ModelConfig,
  params: types.Params,
  *,
  dtype: Any = np.float32,
  max_shard_bytes: int = 5_000_000_000,
  bos_id: int | None = None,
  eos_id: int | Sequence[int] | None = None,
  pad_id: int | None = None,
) -> None:
  """Writes config.json and safetensors that `transformers` and `load` read.

  bos_id, eos_id, pad_id: written into config.json, where generation looks for
  them. `transformers` reads a scalar head at the last token that is not pad_id,
  and without one takes no batches.
  max_shard_bytes: larger weights are split over files with an index. Host
  memory holds one tensor at a time. The folder is created complete or not at
  all.
  Collective: process 0 writes to its `path`; where it fails, the other
  processes raise RuntimeError. FileExistsError if `path` is a file or a folder
  that is not empty. ValueError if no model family can express `config`, if
  `params` do not match it, if `dtype` is float16 and a value is beyond its
  range, or if the scalar head at an EOS could not be read.
  """
  if config.head == 'scalar' and pad_id is not None and pad_id in _ids(eos_id):
    raise ValueError(
      f'pad_id {pad_id} is an EOS: `transformers` would take the reward of a '
      'text that ends with it at the token before.'
    )
  family, values, groups = _plan(config)
  dtype = safetensors_file.check_dtype(np.dtype(dtype).name)
  flat = traverse_util.flatten_dict(params, sep='/')
  expected_tensors.check(
    {name: spec.shape for name, spec in specs.flat_specs(config).items()},
    {name: tuple(leaf.shape) for name, leaf in flat.items()},
    'The parameter tree',
  )
  values |= {
    'model_type': family.name,
    'torch_dtype': dtype.name,
    'bos_token_id': bos_id,
    'eos_token_id': eos_id,
    'pad_token_id': pad_id,
  }
  fetched = _fetch_to_host(groups, flat)

  def write():
    with assets.atomic_path(path) as temp:
      temp.mkdir()
      _write_json(temp / 'config.json', values)
      _write_shards(
        temp, groups, _encode(fetched, dtype), dtype, max_shard_bytes
      )

  if jax.process_count() == 1:
    write()
  else:
    _write_on_process_0(write, fetched)


def _ids(eos_id: int | Sequence[int] | None) -> Sequence[int]:
  return eos_id if isinstance(eos_id, Sequence) else (eos_id,)


class _FetchError(Exception):
  """Some parameters could not be copied to the host."""


def _write_on_process_0(write: Callable[[], None], fetched: Iterator) -> None:
  """Collective: all processes fetch, process 0 writes, all raise if it fails.

  write: consumes `fetched`. After a `_FetchError` processes can no longer agree
  on an error, so it is raised at once.
  """
  error = None
  if jax.process_index() == 0:
    try:
      write()
    except _FetchError:
      raise
    except Exception as caught:
      error = caught
  # The fetches are collective: process 0 takes part even if it cannot write.
  collections.deque(fetched, maxlen=0)
  text = '' if error is None else f'{type(error).__name__}: {error}'
  text = text.encode()[:_MESSAGE_BYTES].ljust(_MESSAGE_BYTES, b'\0')
  text = multihost_utils.broadcast_one_to_all(np.frombuffer(text, np.uint8))
  if error is not None:
    raise error
  text = bytes(np.asarray(text)).rstrip(b'\0').decode(errors='replace')
  if text:
    raise RuntimeError(f'Process 0 did not save the parameters: {text}')


def _fetch_to_host(
  groups: list[list[expected_tensors.ExpectedTensor]], flat: dict[str, Any]
) -> Iterator[tuple[expected_tensors.ExpectedTensor, list[np.ndarray]]]:
  """Each tensor with the leaves, or layers of leaves, that it consists of."""
  for group in groups:
    leaves = [flat[name] for name in group[0].tensor_map.paths]
    for tensor in group:
      try:
        parts = [device_transfer.fetch(leaf, tensor.layer) for leaf in leaves]
      except Exception as error:
        raise _FetchError(f'{tensor.name}: {error}') from error
      yield tensor, parts
      del parts  # Here and below: frees them before the next are fetched.


def _encode(fetched, dtype) -> Iterator[np.ndarray]:
  """The tensors as they are stored, in `dtype`."""
  for tensor, parts in fetched:
    with np.errstate(over='ignore'):
      stored = np.ascontiguousarray(tensor.tensor_map.op.write(*parts), dtype)
    del parts
    if dtype == np.float16 and not np.isfinite(stored).all():
      raise ValueError(
        f'{tensor.name} has values that are not finite or beyond 65504, the '
        'range of float16: use bfloat16 or float32.'
      )
    yield stored
    del stored


def _write_shards(
  folder: pathlib.Path,
  groups: list[list[expected_tensors.ExpectedTensor]],
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
