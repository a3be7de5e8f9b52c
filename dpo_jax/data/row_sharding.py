"""Rows of a batch on a mesh: host arrays to device arrays and back.

Rows are split over the axes `parallel.ROWS` of a mesh; devices along 'tensor'
hold the same rows. Each process has the rows that its own devices hold.
"""

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from dpo_jax.models import parallel


def local_rows(mesh: jax.sharding.Mesh, rows: int) -> list[int]:
  """Which of a batch's rows this process's devices hold, in rising order."""
  held = _by_rows(mesh).addressable_devices_indices_map((rows,)).values()
  return sorted({r for (index,) in held for r in range(*index.indices(rows))})


def to_devices(mesh: jax.sharding.Mesh, batch):
  """A tree of host arrays [R, ...] as device arrays, rows split over `mesh`.

  `batch` has the rows that `local_rows` names, which are all of them in a
  single process; the result is the batch of all processes.
  """
  place = _by_rows(mesh)
  if place.is_fully_addressable:
    return jax.device_put(batch, place)
  groups = parallel.row_groups(mesh)
  held = len(jax.tree.leaves(batch)[0])
  share = held * groups // len(local_rows(mesh, groups))
  at = {row: i for i, row in enumerate(local_rows(mesh, share))}

  def put(x):
    def part(index):
      rows = range(*index[0].indices(share))
      return x[at[rows[0]] : at[rows[0]] + len(rows)]

    return jax.make_array_from_callback((share, *x.shape[1:]), place, part)

  return jax.tree.map(put, jax.tree.map(np.asarray, batch))


def to_host(array: jax.Array) -> np.ndarray:
  """All values of a device array, in every process; collective."""
  if not isinstance(array, jax.Array) or array.is_fully_addressable:
    return np.asarray(array)
  if array.is_fully_replicated:
    return np.asarray(array.addressable_data(0))
  return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def _by_rows(mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec(parallel.ROWS))
