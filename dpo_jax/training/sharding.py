"""Devices as a mesh, rows over its data axis."""

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dpo_jax import registry, types


def make_mesh(*, data: int | None = None) -> jax.sharding.Mesh:
  """A mesh of `data` devices on the axis 'data'; None takes all there are."""
  available = jax.device_count()
  size = available if data is None else data
  if not 1 <= size <= available:
    raise ValueError(
      f'mesh.data is {size}, but there are {available} devices '
      f'({jax.default_backend()}).'
    )
  devices = np.array(jax.devices()[:size])
  return jax.sharding.Mesh(devices, ('data',), axis_types=(AxisType.Auto,))


def rows_per_batch(mesh, batch_size: int, accumulation_steps: int = 1) -> int:
  """Rows that give each device one in every accumulation step."""
  registry.check_at_least('batch_size', batch_size, 1)
  registry.check_at_least('accumulation_steps', accumulation_steps, 1)
  rows = mesh.size * accumulation_steps
  if batch_size % rows:
    raise ValueError(
      f'A batch of {batch_size} examples does not divide into {mesh.size} '
      f'devices x {accumulation_steps} accumulation steps = {rows} rows. Take '
      f'a multiple of {rows}.'
    )
  return rows


def shard_rows(mesh, batch: types.Batch) -> types.Batch:
  """Puts a batch on the devices, its rows split over the data axis."""
  return jax.device_put(batch, NamedSharding(mesh, PartitionSpec('data')))


def replicate(mesh, tree):
  """Puts a whole copy of a tree on every device."""
  return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def replicated_like(mesh, tree):
  """ShapeDtypeStructs of a tree, as `replicate` would place it."""
  place = NamedSharding(mesh, PartitionSpec())
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree
  )
