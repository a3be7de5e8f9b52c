"""Leaves between the host and the devices that hold their parts."""

import functools
import math
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

# Bytes.
_ALIGNMENT = 64
# Of a leaf without layers, fetched at a time.
_BLOCK = 64 * 2**20


class Incoming:
  """A leaf on its way to its devices: those parts that this process holds.

  sharding: None for the default device.
  """

  def __init__(self, shape: tuple[int, ...], dtype: np.dtype, sharding: Any):
    self._shape, self._sharding = shape, sharding
    everywhere = {None: tuple(slice(None) for _ in shape)}
    places = (
      sharding.addressable_devices_indices_map(shape)
      if sharding
      else everywhere
    )
    self._held = {
      device: tuple(
        index.indices(size)[:2] for index, size in zip(indices, shape)
      )
      for device, indices in places.items()
    }
    self._parts = {
      spans: _empty(tuple(stop - start for start, stop in spans), dtype)
      for spans in set(self._held.values())
    }

  def fill(self, value: np.ndarray, layer: int | None) -> None:
    """Takes what is held here of the leaf, or of one layer of it."""
    for spans, part in self._parts.items():
      if layer is None:
        part[...] = value[_slices(spans)]
      elif spans[0][0] <= layer < spans[0][1]:
        part[layer - spans[0][0]] = value[_slices(spans[1:])]

  def put(self) -> jax.Array:
    """On its devices, before the next leaf takes memory."""
    placed = [
      jax.device_put(self._parts[spans], device)
      for device, spans in self._held.items()
    ]
    self._parts.clear()
    if self._sharding is None:
      return jax.block_until_ready(placed[0])
    return jax.block_until_ready(
      jax.make_array_from_single_device_arrays(
        self._shape, self._sharding, placed
      )
    )


def _slices(spans) -> tuple[slice, ...]:
  return tuple(slice(*span) for span in spans)


def _empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
  """Aligned as JAX has it on the CPU, which then takes it without a copy."""
  size = math.prod(shape) * dtype.itemsize
  raw = np.empty(size + _ALIGNMENT, np.uint8)
  start = -raw.ctypes.data % _ALIGNMENT
  return raw[start : start + size].view(dtype).reshape(shape)


def fetch(leaf, layer: int | None) -> np.ndarray:
  """A leaf, or one layer of it, on the host.

  Where processes hold parts of the leaf, all of them call this, and each gets
  the whole; a device then holds that layer, or `_BLOCK` bytes, beside its part.
  """
  if isinstance(leaf, np.ndarray):
    return leaf if layer is None else leaf[layer]
  place = leaf.sharding
  if isinstance(place, NamedSharding) and not leaf.is_fully_replicated:
    if layer is None:
      return _by_blocks(leaf)
    part, row = divmod(layer, place.shard_shape(leaf.shape)[0])
    return _block(leaf, row, 1)[part, 0]
  if layer is None:
    return np.asarray(leaf)
  if all(device.platform == 'cpu' for device in leaf.devices()):
    # It is on the host, and NumPy sees it there.
    return np.asarray(leaf)[layer]
  # Brought to the host whole, JAX would keep it there.
  return np.asarray(jax.lax.dynamic_index_in_dim(leaf, layer, keepdims=False))


def _by_blocks(leaf: jax.Array) -> np.ndarray:
  """A leaf split over devices, some rows of each part at a time."""
  out = np.empty(leaf.shape, leaf.dtype)
  rows = leaf.sharding.shard_shape(leaf.shape)[0]
  by_parts = out.reshape(-1, rows, *leaf.shape[1:])
  size = min(rows, max(1, _BLOCK * rows // leaf.nbytes))
  for start in range(0, rows, size):
    start = min(start, rows - size)
    by_parts[:, start : start + size] = _block(leaf, start, size)
  return out


def _block(leaf: jax.Array, start: int, size: int) -> np.ndarray:
  """[parts, size, ...]: `size` rows of each part of the first dimension."""
  block = _rows(leaf, start, size, leaf.sharding, leaf.is_fully_addressable)
  return np.asarray(block).reshape(-1, size, *leaf.shape[1:])


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _rows(x, start, size: int, place: NamedSharding, addressable: bool):
  # Given all of it to slice, XLA could gather all of it.
  cut = jax.shard_map(
    lambda part, start: jax.lax.dynamic_slice_in_dim(part, start, size),
    mesh=place.mesh,
    in_specs=(place.spec, PartitionSpec()),
    out_specs=place.spec,
  )
  spec = place.spec if addressable else PartitionSpec()
  return jax.lax.with_sharding_constraint(
    cut(x, start), NamedSharding(place.mesh, spec)
  )
