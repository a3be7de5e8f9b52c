"""Reads GGUF files: metadata, and quantised tensors as float32."""

import mmap
import pathlib
from typing import Any

import numpy as np

from dpo_jax import assets
from dpo_jax.weights import families, mapping


class GgufTensors:
  """The tensors of a GGUF file, dequantised when read."""

  def __init__(self, reader):
    self._tensors = {t.name: t for t in reader.tensors}
    self._map = reader.data.base.base
    # GGUF lists dimensions from the fastest varying to the slowest.
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
    # Frees the pages read: else the whole file would stay in memory.
    self._map.madvise(mmap.MADV_DONTNEED)
    return values.reshape(self.shapes[name])

  def has_own_unembedding(self) -> bool:
    """Whether output.weight exists and differs from the token embedding."""
    if 'output.weight' not in self.shapes:
      return False
    return not self.equal('output.weight', 'token_embd.weight')

  def equal(self, a: str, b: str) -> bool:
    a, b = self._tensors[a], self._tensors[b]
    return a.tensor_type == b.tensor_type and np.array_equal(a.data, b.data)


def read(path: pathlib.Path) -> mapping.Checkpoint:
  """Opens a GGUF file; the tensors stay on disk."""
  file = assets.read_gguf(path)
  values = _metadata(file.fields)
  if values.get('split.count', 0) > 1:
    raise ValueError(
      f'{str(path)!r} is one file of a split model; merge its files first.'
    )
  name = values.get('general.architecture')
  family = families.of_architecture(name)
  values = {k.removeprefix(f'{family.name}.'): v for k, v in values.items()}
  reader = GgufTensors(file)
  if 'token_embd.weight' not in reader.shapes:
    raise ValueError(f'{str(path)!r} has no token_embd.weight.')
  classifier = [name for name in reader.shapes if name.startswith('cls.')]
  if classifier:
    raise ValueError(
      f'{str(path)!r} has {", ".join(classifier)}: it is a classifier, which '
      'is read from folders in Hugging Face layout only.'
    )
  config = mapping.read_config(family.gguf, values, reader)
  return mapping.Checkpoint(family.gguf, values, config, reader)


def _metadata(fields: dict) -> dict[str, Any]:
  """All fields but the tokenizer's.

  A float32 becomes the float of the same shortest decimal: 1e-05, not
  9.999999747378752e-06.
  """
  values = {}
  for name, field in fields.items():
    if not name.startswith('tokenizer.'):
      value = field.contents()
      if isinstance(value, float):
        value = float(str(np.float32(value)))
      values[name] = value
  return values
