"""Copies leaves of the parameter tree between host and sharded devices."""

import functools
import math
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

# Bytes to which JAX aligns arrays on the CPU.
_ALIGNMENT = 64
# Bytes that `fetch` copies at a time of a leaf without layers.
_FETCH_BYTES = 64 * 2**20


class LeafBuilder:
  """Collects a leaf's shards on the host, then copies them to the devices.

  Only the shards of this process's devices. sharding: None for the default
  device.
  """

  def __init__(self, shape: tuple[int, ...], dtype: np.dtype, sharding: Any):
    self._shape, self._sharding = shape, sharding
    whole = {None: tuple(slice(None) for _ in shape)}
    indices = (
      sharding.addressable_devices_indices_map(shape) if sharding else whole
    )
    # Device -> (start, stop) of its shard in each dimension.
    self._spans = {
      device: tuple(each.indices(size)[:2] for each, size in zip(slices, shape))
      for device, slices in indices.items()
    }
    self._shards = {
      spans: _empty(tuple(stop - start for start, stop in spans), dtype)
      for spans in set(self._spans.values())
    }

  def fill(self, value: np.ndarray, layer: int | None) -> None:
    """Copies the shards' part of `value`: the leaf, or one layer of it."""
    for spans, shard in self._shards.items():
      if layer is None:
        shard[...] = value[_slices(spans)]
      elif spans[0][0] <= layer < spans[0][1]:
        shard[layer - spans[0][0]] = value[_slices(spans[1:])]

  def to_devices(self) -> jax.Array:
    """The leaf on its devices; the host's shards are dropped."""
    placed = [
      jax.device_put(self._shards[spans], device)
      for device, spans in self._spans.items()
    ]
    self._shards.clear()
    # Blocks, so that the next leaf takes no memory before this one is copied.
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
  """An array with JAX's alignment, which JAX uses on the CPU without a copy."""
  size = math.prod(shape) * dtype.itemsize
  raw = np.empty(size + _ALIGNMENT, np.uint8)
  start = -raw.ctypes.data % _ALIGNMENT
  return raw[start : start + size].view(dtype).reshape(shape)


def fetch(leaf, layer: int | None) -> np.ndarray:
  """A leaf, or one layer of it, as an array on the host.

  Collective where the leaf is split over processes: each process gets all of
  it. Beside its shard a device then holds that layer, or `_FETCH_BYTES`.
  """
  if isinstance(leaf, np.ndarray):
    return leaf if layer is None else leaf[layer]
  sharding = leaf.sharding
  if isinstance(sharding, NamedSharding) and not leaf.is_fully_replicated:
    if layer is None:
      return _fetch_split(leaf)
    shard, row = divmod(layer, sharding.shard_shape(leaf.shape)[0])
    return _fetch_rows(leaf, row, 1)[shard, 0]
  if layer is None:
    return np.asarray(leaf)
  if all(device.platform == 'cpu' for device in leaf.devices()):
    return np.asarray(leaf)[layer]  # A view, no copy.
  # One layer only: JAX would keep a host copy of the whole leaf.
  return np.asarray(jax.lax.dynamic_index_in_dim(leaf, layer, keepdims=False))


def _fetch_split(leaf: jax.Array) -> np.ndarray:
  """A leaf split over devices, fetched some rows of each shard at a time."""
  out = np.empty(leaf.shape, leaf.dtype)
  rows = leaf.sharding.shard_shape(leaf.shape)[0]
  by_shard = out.reshape(-1, rows, *leaf.shape[1:])
  size = min(rows, max(1, _FETCH_BYTES * rows // leaf.nbytes))
  for start in range(0, rows, size):
    start = min(start, rows - size)
    by_shard[:, start : start + size] = _fetch_rows(leaf, start, size)
  return out


def _fetch_rows(leaf: jax.Array, start: int, size: int) -> np.ndarray:
  """[shards, size, ...]: `size` rows of each shard of the first dimension."""
  rows = _slice_rows(
    leaf, start, size, leaf.sharding, leaf.is_fully_addressable
  )
  return np.asarray(rows).reshape(-1, size, *leaf.shape[1:])


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _slice_rows(
  x, start, size: int, sharding: NamedSharding, addressable: bool
):
  # By shard_map: a slice of the whole array could make XLA gather all of it.
  sliced = jax.shard_map(
    lambda shard, start: jax.lax.dynamic_slice_in_dim(shard, start, size),
    mesh=sharding.mesh,
    in_specs=(sharding.spec, PartitionSpec()),
    out_specs=sharding.spec,
  )
  spec = sharding.spec if addressable else PartitionSpec()
  return jax.lax.with_sharding_constraint(
    sliced(x, start), NamedSharding(sharding.mesh, spec)
  )
