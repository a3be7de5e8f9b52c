"""Loads checkpoints as parameter trees."""

import os
import pathlib
import re
from typing import Any

import numpy as np
from flax import traverse_util

from dpo_jax import assets, types
from dpo_jax.models import config as model_config
from dpo_jax.models import specs
from dpo_jax.weights import (
  config_suggestions,
  device_transfer,
  expected_tensors,
  gguf_file,
  hf_folder,
  mapping,
)


def load(
  uri: str | os.PathLike, *, dtype: Any = None, shardings: Any = None
) -> tuple[model_config.ModelConfig, types.Params]:
  """The config and parameters at `uri`.

  uri: of a folder in Hugging Face layout with safetensors, or of a .gguf file
  of any quantisation that the `gguf` package reads; see `assets.resolve`.
  dtype: of the parameters; None is float32, whatever the file holds, as an
  optimizer updates them.
  shardings: a tree of shardings like the parameters; None: the default device.
  Each device gets only its shards. Host memory holds one leaf's shards of this
  process's devices, and one stored tensor.

  ValueError for an unsupported model or config value, for missing or unexpected
  tensors or wrong shapes, and for a damaged file.
  """
  path, checkpoint = _open(uri)
  return checkpoint.config, _read_params(checkpoint, path, dtype, shardings)


def read_config(uri: str | os.PathLike) -> model_config.ModelConfig:
  """The config at `uri`, without reading parameters; errors as in `load`."""
  return _open(uri)[1].config


def _open(uri) -> tuple[pathlib.Path, mapping.Checkpoint]:
  path = assets.resolve(uri)
  if path.is_dir():
    return path, hf_folder.read(path)
  if path.suffix != '.gguf':
    raise ValueError(
      f'Cannot read weights from {str(path)!r}: expected a folder with '
      'config.json and model.safetensors, or a .gguf file.'
    )
  return path, gguf_file.read(path)


def _read_params(
  checkpoint: mapping.Checkpoint,
  path: pathlib.Path,
  dtype: Any,
  shardings: Any,
) -> types.Params:
  format, _, config, reader = checkpoint
  dtype = np.dtype(np.float32 if dtype is None else dtype)
  specs_by_path, flat = specs.flat_specs(config), {}
  groups = list(expected_tensors.list_tensors(format, config))
  prefix = _missing_prefix(format, reader)
  copies = _embedding_copies(format, config, reader, prefix)
  expected_tensors.check(
    {s.name.removeprefix(prefix): s.shape for group in groups for s in group},
    reader.shapes,
    str(path),
    (*format.ignored, *map(re.escape, copies)),
    lambda found: config_suggestions.suggest(checkpoint, found, prefix),
  )
  _check_copies(copies, format, reader, prefix)
  shardings = (
    traverse_util.flatten_dict(shardings, sep='/') if shardings else {}
  )
  for group in groups:
    paths, op = group[0].tensor_map.paths, group[0].tensor_map.op
    leaves = [
      device_transfer.LeafBuilder(
        specs_by_path[path].shape, dtype, shardings.get(path)
      )
      for path in paths
    ]
    for tensor in group:
      stored = reader.read(tensor.name.removeprefix(prefix))
      for leaf, value in zip(leaves, op.read(stored, config)):
        leaf.fill(value, tensor.layer)
    for path in paths:
      # Popped: else the host copies of this group's leaves would stay.
      flat[path] = leaves.pop(0).to_devices()
  return traverse_util.unflatten_dict(flat, sep='/')


def _missing_prefix(
  format: mapping.Format, reader: mapping.TensorReader
) -> str:
  """The format's prefix if the names lack it (base models), else ''."""
  present = any(name.startswith(format.prefix) for name in reader.shapes)
  return '' if present else format.prefix


def _stored_name(format: mapping.Format, path: str) -> str:
  (name,) = (t.name for t in format.tensor_maps if t.paths == (path,))
  return name


def _embedding_copies(format, config, reader, prefix: str) -> list[str]:
  """The unembedding, if it is stored although it is tied to the embedding."""
  name = _stored_name(format, 'unembed/kernel').removeprefix(prefix)
  return [name] if config.tie_embeddings and name in reader.shapes else []


def _check_copies(copies, format, reader, prefix: str):
  """ValueError for a stored unembedding that differs from the embedding."""
  tokens = _stored_name(format, 'embed/tokens').removeprefix(prefix)
  for name in copies:
    if not reader.equal(name, tokens):
      raise ValueError(
        f'The config ties the unembedding to the embedding, but {name} is '
        f'stored and differs from {tokens}. If the model was trained with it, '
        'set tie_word_embeddings=false in config.json; else remove it.'
      )
