"""Opens folders in Hugging Face layout: config.json and safetensors."""

import pathlib

from dpo_jax import assets
from dpo_jax.weights import (
  families,
  mapping,
  safetensors_file,
)

SINGLE = 'model.safetensors'
INDEX = 'model.safetensors.index.json'


def read(folder: pathlib.Path) -> mapping.Checkpoint:
  """Opens `folder`; the tensors stay on disk."""
  if not (folder / 'config.json').exists():
    gguf = sorted(str(path) for path in folder.glob('*.gguf'))
    hint = f' To read a .gguf file, give its path: {gguf[0]!r}.' if gguf else ''
    raise ValueError(
      f'{str(folder)!r} has no config.json; {_holds(folder)}{hint}'
    )
  values = assets.read_json(folder / 'config.json')
  format = families.of_model_type(values).hf
  config = mapping.read_config(format, values)
  reader = safetensors_file.Safetensors(_files(folder))
  return mapping.Checkpoint(format, values, config, reader)


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
    raise ValueError(f"{str(folder / INDEX)!r} has no object 'weight_map'.")
  names = sorted(set(weight_map.values()))
  absent = [name for name in names if not (folder / name).exists()]
  if absent:
    raise ValueError(f'{str(folder)!r} lacks {absent}, which {INDEX} lists.')
  return [folder / name for name in names]


def _holds(folder: pathlib.Path) -> str:
  names = ', '.join(sorted(p.name for p in folder.iterdir()))
  return f'it holds: {names or "nothing"}.'
