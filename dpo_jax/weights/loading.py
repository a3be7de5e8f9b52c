"""Checkpoints to parameter trees."""

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
  gguf_file,
  hf_folder,
  inventory,
  shards,
  suggestions,
  tables,
)


def load(
  uri: str | os.PathLike, *, dtype: Any = None, shardings: Any = None
) -> tuple[model_config.ModelConfig, types.Params]:
  """The config and parameters at `uri`, any form that `assets.resolve` takes.

  A folder in Hugging Face layout with safetensors, or a .gguf file of any
  quantisation that the `gguf` package reads. Parameters are `dtype`, float32 if
  it is None whatever the file holds: they are what an optimizer updates.
  `shardings` is a tree of shardings like the parameters, or None for the
  default device. Each device gets its parts alone; host memory holds those of
  one leaf for the devices of this process, and one stored tensor.

  ValueError for an unsupported model or option of one, and for tensors that are
  missing, unexpected or of another shape than the config's, and for a file that
  is damaged.
  """
  path, checkpoint = _open(uri)
  return checkpoint.config, _fill(checkpoint, path, dtype, shardings)


def read_config(uri: str | os.PathLike) -> model_config.ModelConfig:
  """The config at `uri`; no parameters are read, ValueError as `load`."""
  return _open(uri)[1].config


def _open(uri) -> tuple[pathlib.Path, inventory.Checkpoint]:
  path = assets.resolve(uri)
  if path.is_dir():
    return path, hf_folder.read(path)
  if path.suffix != '.gguf':
    raise ValueError(
      f'No weights are read from {str(path)!r}: expected a folder with '
      'config.json and model.safetensors, or a .gguf file.'
    )
  return path, gguf_file.read(path)


def _fill(
  checkpoint: inventory.Checkpoint,
  path: pathlib.Path,
  dtype: Any,
  shardings: Any,
) -> types.Params:
  layout, _, config, source = checkpoint
  dtype = np.dtype(np.float32 if dtype is None else dtype)
  table, flat = specs.flat_specs(config), {}
  groups = list(inventory.stored(layout, config))
  prefix = _absent_prefix(layout, source)
  copies = _copies(layout, config, source, prefix)
  inventory.check(
    {s.name.removeprefix(prefix): s.shape for group in groups for s in group},
    source.shapes,
    str(path),
    (*layout.ignored, *map(re.escape, copies)),
    lambda found: suggestions.suggest(checkpoint, found, prefix),
  )
  _check_copies(copies, layout, source, prefix)
  targets = traverse_util.flatten_dict(shardings, sep='/') if shardings else {}
  for group in groups:
    paths, op = group[0].rule.ours, group[0].rule.op
    leaves = [
      shards.Incoming(table[path].shape, dtype, targets.get(path))
      for path in paths
    ]
    for tensor in group:
      stored = source.read(tensor.name.removeprefix(prefix))
      for leaf, value in zip(leaves, op.read(stored, config)):
        leaf.fill(value, tensor.layer)
    for name in paths:
      flat[name] = leaves.pop(0).put()
  return traverse_util.unflatten_dict(flat, sep='/')


def _absent_prefix(layout: tables.Layout, source: tables.Source) -> str:
  """The prefix, if checkpoints of the headless model left it off."""
  present = any(name.startswith(layout.prefix) for name in source.shapes)
  return '' if present else layout.prefix


def _stored_as(layout: tables.Layout, path: str) -> str:
  (name,) = (r.theirs for r in layout.rules if r.ours == (path,))
  return name


def _copies(layout, config, source, prefix: str) -> list[str]:
  """Unembeddings beside a tied embedding: some store the matrix twice."""
  name = _stored_as(layout, 'unembed/kernel').removeprefix(prefix)
  return [name] if config.tie_embeddings and name in source.shapes else []


def _check_copies(copies, layout, source, prefix: str):
  """ValueError where what would be ignored is a matrix of its own."""
  tokens = _stored_as(layout, 'embed/tokens').removeprefix(prefix)
  for name in copies:
    if not source.same(name, tokens):
      raise ValueError(
        f'The config ties the unembedding to the embedding, but {name} is '
        f'stored and differs from {tokens}. If it is what was trained, set '
        'tie_word_embeddings=false in config.json; else remove it.'
      )
