"""Safetensors files, read and written one tensor at a time.

The format: eight bytes with the length of a JSON header, little-endian; the
header, name -> dtype, shape, and begin and end of its data; the data, row-major
(the README of the safetensors library). That library writes a file from
tensors that are all in memory; this one writes them as they come.
"""

import json
import math
import pathlib
from collections.abc import Iterator, Mapping

import numpy as np
import safetensors

from dpo_jax import assets, registry

DTYPES = {'float32': 'F32', 'bfloat16': 'BF16', 'float16': 'F16'}
# Its data begin at a multiple of this, as the library's do.
_ALIGNMENT = 8
# Compared at a time.
_ROWS = 4096


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

  def same(self, a: str, b: str) -> bool:
    if self.shapes[a] != self.shapes[b]:
      return False
    slices = [self._files[name][0].get_slice(name) for name in (a, b)]
    rows = self.shapes[a][0]
    for i in range(0, rows, _ROWS):
      x, y = (part[i : min(i + _ROWS, rows)] for part in slices)
      if not np.array_equal(x, y):
        return False
    return True


def _open(path: pathlib.Path):
  try:
    # Pages of a memory map would stay beside the parameters.
    return safetensors.safe_open(path, 'np', backend='pread')
  except (safetensors.SafetensorError, OSError) as error:
    raise assets.damaged(path, 'readable safetensors file', error) from error


def check_dtype(name: str) -> np.dtype:
  """The dtype; ValueError for one that parameters are not stored as."""
  registry.lookup(DTYPES, name, 'dtype')
  return np.dtype(name)


def write(
  path: pathlib.Path,
  shapes: Mapping[str, tuple[int, ...]],
  dtype: np.dtype,
  tensors: Iterator[np.ndarray],
) -> None:
  """Writes the tensors of `shapes`, which come in this order and are `dtype`.

  Takes no more from `tensors` than there are shapes.
  """
  # Some readers refuse files that do not name the framework.
  header, end = {'__metadata__': {'format': 'pt'}}, 0
  for name, shape in shapes.items():
    begin, end = end, end + math.prod(shape) * dtype.itemsize
    header[name] = {
      'dtype': DTYPES[dtype.name],
      'shape': shape,
      'data_offsets': [begin, end],
    }
  text = json.dumps(header, separators=(',', ':')).encode()
  text += b' ' * (-len(text) % _ALIGNMENT)
  with path.open('wb') as f:
    f.write(len(text).to_bytes(8, 'little') + text)
    for name, shape in shapes.items():
      tensor = next(tensors)
      if tensor.shape != shape or tensor.dtype != dtype:
        raise ValueError(
          f'{name} is {tensor.dtype}{tensor.shape}; expected {dtype}{shape}.'
        )
      # NumPy lends no buffer of bfloat16.
      f.write(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8))
      # Before the next one is made.
      del tensor
