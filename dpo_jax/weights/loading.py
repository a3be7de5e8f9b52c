"""Checkpoints to parameter trees."""

import os
import pathlib
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from dpo_jax import assets, types
from dpo_jax.models import config as model_config
from dpo_jax.models import specs
from dpo_jax.weights import gguf_file, hf_folder, inventory, tables


def load(
  uri: str | os.PathLike, *, dtype: Any = None, shardings: Any = None
) -> tuple[model_config.ModelConfig, types.Params]:
  """The config and parameters at `uri`, any form that `assets.resolve` takes.

  A folder in Hugging Face layout with safetensors, or a .gguf file of any
  quantisation that the `gguf` package reads. Parameters are `dtype`, float32 if
  it is None whatever the file holds: they are what an optimizer updates.
  `shardings` is a tree of shardings like the parameters, or None for the
  default device. Host memory holds one stacked leaf at a time.

  ValueError for an unsupported model or option of one, and for tensors that are
  missing, unexpected or of another shape than the config's, and for a file that
  is damaged.
  """
  path = assets.resolve(uri)
  read = hf_folder.read if path.is_dir() else gguf_file.read
  if path.suffix != '.gguf' and not path.is_dir():
    raise ValueError(
      f'No weights are read from {str(path)!r}: expected a folder with '
      'config.json and model.safetensors, or a .gguf file.'
    )
  layout, config, source = read(path)
  return config, _fill(layout, config, source, path, dtype, shardings)


def _fill(
  layout: tables.Layout,
  config: model_config.ModelConfig,
  source: tables.Source,
  path: pathlib.Path,
  dtype: Any,
  shardings: Any,
) -> types.Params:
  dtype = np.dtype(np.float32 if dtype is None else dtype)
  table, flat = specs.flat_specs(config), {}
  groups = list(inventory.stored(layout, config))
  prefix = _absent_prefix(layout, source)
  inventory.check(
    {s.name.removeprefix(prefix): s.shape for group in groups for s in group},
    source.shapes,
    str(path),
    _ignored(layout, config),
  )
  targets = traverse_util.flatten_dict(shardings, sep='/') if shardings else {}
  for group in groups:
    paths, op = group[0].rule.ours, group[0].rule.op
    leaves = [np.empty(table[path].shape, dtype) for path in paths]
    for tensor in group:
      stored = source.read(tensor.name.removeprefix(prefix))
      for leaf, value in zip(leaves, op.read(stored, config)):
        leaf[... if tensor.layer is None else tensor.layer] = value
    for name, leaf in zip(paths, leaves):
      flat[name] = _put(leaf, targets.get(name))
  return traverse_util.unflatten_dict(flat, sep='/')


def _absent_prefix(layout: tables.Layout, source: tables.Source) -> str:
  """The prefix, if checkpoints of the headless model left it off."""
  present = any(name.startswith(layout.prefix) for name in source.shapes)
  return '' if present else layout.prefix


def _ignored(layout, config) -> tuple[str, ...]:
  # Some tied checkpoints store the shared matrix twice.
  return (
    *layout.ignored,
    *(['lm_head.weight', 'output.weight'] if config.tie_embeddings else []),
  )


def _put(leaf: np.ndarray, sharding) -> jax.Array:
  if sharding is None:
    return jax.device_put(leaf)
  return jax.make_array_from_callback(leaf.shape, sharding, leaf.__getitem__)
