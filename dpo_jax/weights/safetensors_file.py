"""Reads and writes safetensors files one tensor at a time.

The format (README of the safetensors library): the length of a JSON header as
eight bytes, little-endian; the header, which maps a name to dtype, shape and
byte range; the data, row-major. The library writes only tensors that are all in
memory; `write` takes them one by one from an iterator.
"""

import json
import math
import pathlib
from collections.abc import Iterator, Mapping

import numpy as np
import safetensors

from dpo_jax import assets, registry

DTYPES = {'float32': 'F32', 'bfloat16': 'BF16', 'float16': 'F16'}
# The data begin at a multiple of this many bytes, as in the library's files.
_ALIGNMENT = 8
# Rows that `equal` compares at a time.
_ROWS = 4096


class Safetensors:
  """The tensors of one or several safetensors files, read one by one."""

  def __init__(self, paths: list[pathlib.Path]):
    self.shapes, self._files = {}, {}
    for path in paths:
      file = _open(path)
      for name in file.keys():  # noqa: SIM118 (not a mapping)
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

  def equal(self, a: str, b: str) -> bool:
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
    # 'pread': the pages of a memory map would stay in memory.
    return safetensors.safe_open(path, 'np', backend='pread')
  except (safetensors.SafetensorError, OSError) as error:
    raise assets.damaged(path, 'readable safetensors file', error) from error


def check_dtype(name: str) -> np.dtype:
  """The dtype `name`; ValueError unless parameters can be stored as it."""
  registry.lookup(DTYPES, name, 'dtype')
  return np.dtype(name)


def write(
  path: pathlib.Path,
  shapes: Mapping[str, tuple[int, ...]],
  dtype: np.dtype,
  tensors: Iterator[np.ndarray],
) -> None:
  """Writes tensors of `dtype`, with the names and shapes of `shapes`.

  tensors: in the order of `shapes`; no more are taken than there are shapes.
  """
  # Some readers refuse files whose metadata lacks a framework.
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
      # As bytes: NumPy has no buffer protocol for bfloat16.
      f.write(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8))
      del tensor  # Frees it before the next one is made.
