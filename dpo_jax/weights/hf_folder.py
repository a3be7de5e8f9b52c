"""Folders in Hugging Face layout: config.json and safetensors."""

import json
import pathlib

import numpy as np
import safetensors

from dpo_jax.models import config as model_config
from dpo_jax.weights import families, tables

SINGLE = 'model.safetensors'
INDEX = 'model.safetensors.index.json'


class Safetensors:
  """Tensors of one or several safetensors files, none read before its turn."""

  def __init__(self, paths: list[pathlib.Path]):
    self.shapes, self._files = {}, {}
    for path in paths:
      file = safetensors.safe_open(path, 'np')
      for name in file.keys():  # noqa: SIM118 (it is no mapping)
        self.shapes[name] = tuple(file.get_slice(name).get_shape())
        self._files[name] = file

  def read(self, name: str) -> np.ndarray:
    return self._files[name].get_tensor(name)


def read(
  folder: pathlib.Path,
) -> tuple[tables.Layout, model_config.ModelConfig, Safetensors]:
  """The layout, config and tensors of `folder`, the tensors still on disk."""
  if not (folder / 'config.json').exists():
    raise ValueError(f'{str(folder)!r} has no config.json; {_holds(folder)}')
  values = json.loads((folder / 'config.json').read_text('utf-8'))
  family = families.of_name(values.get('model_type'), 'model_type')
  config = tables.read_config(family.hf, values)
  return family.hf, config, Safetensors(_files(folder))


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
  if (folder / SINGLE).exists():
    return [folder / SINGLE]
  if not (folder / INDEX).exists():
    raise ValueError(
      f'{str(folder)!r} has neither {SINGLE} nor {INDEX}; {_holds(folder)} '
      'Pickled weights (.bin) are not read: they can run code.'
    )
  index = json.loads((folder / INDEX).read_text('utf-8'))
  names = sorted(set(index['weight_map'].values()))
  absent = [name for name in names if not (folder / name).exists()]
  if absent:
    raise ValueError(f'{str(folder)!r} lacks {absent}, which {INDEX} names.')
  return [folder / name for name in names]


def _holds(folder: pathlib.Path) -> str:
  names = ', '.join(sorted(p.name for p in folder.iterdir()))
  return f'it holds: {names or "nothing"}.'
