"""A fingerprint of parameters, computed on the devices that hold them."""

import functools
import hashlib

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from dpo_jax import types

# A leaf's hash is this many sums of 32 bits.
_LANES = 4
# Fractional bits of the golden ratio, which spread consecutive numbers.
_STEP = np.uint32(0x9E3779B9)


def of_params(params: types.Params) -> str:
  """A hash, in hex, of the paths, dtypes, shapes and values of a tree.

  Collective. The same for every sharding, mesh and number of processes, and for
  NumPy arrays. Each device hashes its own shards and sends 16 bytes a leaf to
  the others. The hash is not cryptographic: it detects accidental differences,
  not deliberate collisions. ValueError for leaves of 64 bits.
  """
  digest = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    # JAX would truncate other values when it moves them to a device.
    if jax.dtypes.canonicalize_dtype(leaf.dtype) != leaf.dtype:
      raise ValueError(
        f'{jax.tree_util.keystr(path)} is {leaf.dtype}; expected one of at '
        'most 32 bits.'
      )
    mesh = getattr(getattr(leaf, 'sharding', None), 'mesh', None)
    replicated = mesh and NamedSharding(mesh, PartitionSpec())
    name = f'{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape} '
    digest.update(name.encode())
    digest.update(np.asarray(_lanes(leaf, replicated)).astype('<u4').tobytes())
  return digest.hexdigest()


@functools.partial(jax.jit, static_argnums=1)
def _lanes(x, replicated: NamedSharding | None):
  """u32[_LANES], each a sum over all values of hash(value, position).

  Sums of integers modulo 2^32 depend neither on the order nor on the devices.
  """
  x = jnp.atleast_1d(x)
  bits = x.astype(jnp.uint8) if x.dtype == bool else x
  unsigned = jnp.dtype(f'uint{8 * bits.dtype.itemsize}')
  bits = jax.lax.bitcast_convert_type(bits, unsigned).astype(jnp.uint32)
  hashes = [_mix(bits ^ position) for position in _positions(x.shape)]
  # XLA's CPU backend makes one pass over the array of no other form of this.
  sums = jax.lax.reduce(
    hashes,
    [np.uint32(0)] * _LANES,
    lambda a, b: [x + y for x, y in zip(a, b)],
    range(x.ndim),
  )
  lanes = jnp.stack(sums)
  if replicated is None:
    return lanes
  return jax.lax.with_sharding_constraint(lanes, replicated)


def _positions(shape: tuple[int, ...]):
  """For each lane, hashes of the positions in an array, broadcastable to it."""
  *rows, column = (
    jax.lax.broadcasted_iota(
      jnp.uint32, [n if i == j else 1 for j, n in enumerate(shape)], i
    )
    for i in range(len(shape))
  )
  # Mixed axis by axis, as the flat index of a large leaf can exceed 2^32.
  for row in _mix(np.arange(1, _LANES + 1, dtype=np.uint32)):
    for index in rows:
      row = _mix(row + index * _STEP)
    # The barrier keeps XLA from recomputing it for each value of the row.
    yield jax.lax.optimization_barrier(row) + _mix(column * _STEP)


def _mix(x):
  """A permutation of 32 bits (the finalizer of MurmurHash3, A. Appleby)."""
  x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
  return x ^ (x >> 16)
