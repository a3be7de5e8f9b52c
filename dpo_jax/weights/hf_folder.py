"""Folders in Hugging Face layout: config.json and safetensors."""

import pathlib

import numpy as np
import safetensors

from dpo_jax import assets
from dpo_jax.models import config as model_config
from dpo_jax.weights import families, tables

SINGLE = 'model.safetensors'
INDEX = 'model.safetensors.index.json'


class Safetensors:
  """Tensors of one or several safetensors files, none read before its turn."""

  def __init__(self, paths: list[pathlib.Path]):
    self.shapes, self._files = {}, {}
    for path in paths:
      file = _open(path)
      for name in file.keys():  # noqa: SIM118 (it is no mapping)
        self.shapes[name] = tuple(file.get_slice(name).get_shape())
        self._files[name] = file, path

  def read(self, name: str) -> np.ndarray:
    file, path = self._files[name]
    try:
      return file.get_tensor(name)
    except safetensors.SafetensorError as error:
      raise ValueError(
        f'{name} of {str(path)!r} cannot be read: {error}.'
      ) from error


def _open(path: pathlib.Path):
  try:
    return safetensors.safe_open(path, 'np')
  except (safetensors.SafetensorError, OSError) as error:
    raise assets.damaged(path, 'readable safetensors file', error) from error


def read(
  folder: pathlib.Path,
) -> tuple[tables.Layout, model_config.ModelConfig, Safetensors]:
  """The layout, config and tensors of `folder`, the tensors still on disk."""
  if not (folder / 'config.json').exists():
    raise ValueError(f'{str(folder)!r} has no config.json; {_holds(folder)}')
  values = assets.read_json(folder / 'config.json')
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
  weight_map = assets.read_json(folder / INDEX).get('weight_map')
  if not isinstance(weight_map, dict):
    raise ValueError(f"{str(folder / INDEX)!r} has no table 'weight_map'.")
  names = sorted(set(weight_map.values()))
  absent = [name for name in names if not (folder / name).exists()]
  if absent:
    raise ValueError(f'{str(folder)!r} lacks {absent}, which {INDEX} names.')
  return [folder / name for name in names]


def _holds(folder: pathlib.Path) -> str:
  names = ', '.join(sorted(p.name for p in folder.iterdir()))
  return f'it holds: {names or "nothing"}.'
