"""GGUF files: metadata and quantised tensors, dequantised to float32."""

import mmap
import pathlib
from typing import Any

import numpy as np

from dpo_jax import assets
from dpo_jax.weights import families, inventory, tables


class Gguf:
  """Tensors of a GGUF file, dequantised when read."""

  def __init__(self, reader):
    self._tensors = {t.name: t for t in reader.tensors}
    self._map = reader.data.base.base
    # GGUF lists dimensions from the fastest varying on.
    self.shapes = {
      name: tuple(int(n) for n in reversed(t.shape))
      for name, t in self._tensors.items()
    }

  def read(self, name: str) -> np.ndarray:
    from gguf import quants

    tensor = self._tensors[name]
    try:
      values = quants.dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError as error:
      raise ValueError(
        f'{name} is stored as {tensor.tensor_type.name}, which the gguf '
        f'package cannot dequantise: {error}.'
      ) from error
    # Else the whole file would stay in memory beside what it was read into.
    self._map.madvise(mmap.MADV_DONTNEED)
    return values.reshape(self.shapes[name])

  def has_own_unembedding(self) -> bool:
    """Whether output.weight is there and no copy of the token embedding."""
    if 'output.weight' not in self.shapes:
      return False
    return not self.same('output.weight', 'token_embd.weight')

  def same(self, a: str, b: str) -> bool:
    a, b = self._tensors[a], self._tensors[b]
    return a.tensor_type == b.tensor_type and np.array_equal(a.data, b.data)


def read(path: pathlib.Path) -> inventory.Checkpoint:
  """What a GGUF file holds, the tensors still on disk."""
  reader = assets.read_gguf(path)
  values = _scalars(reader.fields)
  if values.get('split.count', 0) > 1:
    raise ValueError(f'{str(path)!r} is one part of several; merge them first.')
  name = values.get('general.architecture')
  family = families.of_architecture(name)
  values = {k.removeprefix(f'{family.name}.'): v for k, v in values.items()}
  source = Gguf(reader)
  if 'token_embd.weight' not in source.shapes:
    raise ValueError(f'{str(path)!r} has no token_embd.weight.')
  config = tables.read_config(family.gguf, values, source)
  return inventory.Checkpoint(family.gguf, values, config, source)


def _scalars(fields: dict) -> dict[str, Any]:
  """Metadata but the vocabulary; a float32 of 1e-5 reads as 1e-05."""
  values = {}
  for name, field in fields.items():
    if not name.startswith('tokenizer.'):
      value = field.contents()
      if isinstance(value, float):
        value = float(str(np.float32(value)))
      values[name] = value
  return values
