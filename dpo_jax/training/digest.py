"""A fingerprint of parameters, made where their parts lie."""

import functools
import hashlib

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from dpo_jax import types

# 32-bit sums of a leaf that are kept: together a hash of 128 bits.
_LANES = 4
# Fractional bits of the golden ratio: spreads consecutive numbers.
_STEP = np.uint32(0x9E3779B9)


def fingerprint(params: types.Params) -> str:
  """A hash, in hex, of the paths, dtypes, shapes and values of a tree.

  The same for every sharding, mesh and number of processes, and for NumPy
  arrays; each device reads its own parts, and sends 16 bytes a leaf to the
  others. All processes that hold parts call it. It tells trees apart that
  differ by accident, not those that someone made to collide.
  """
  digest = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    # Else JAX would narrow it on its way to the device.
    if jax.dtypes.canonicalize_dtype(leaf.dtype) != leaf.dtype:
      raise ValueError(
        f'{jax.tree_util.keystr(path)} is {leaf.dtype}; expected one of at '
        'most 32 bits.'
      )
    mesh = getattr(getattr(leaf, 'sharding', None), 'mesh', None)
    whole = mesh and NamedSharding(mesh, PartitionSpec())
    name = f'{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape} '
    digest.update(name.encode())
    digest.update(np.asarray(_lanes(leaf, whole)).astype('<u4').tobytes())
  return digest.hexdigest()


@functools.partial(jax.jit, static_argnums=1)
def _lanes(x, whole: NamedSharding | None):
  """u32[_LANES], each a sum over the values of a hash of value and place.

  Sums of integers modulo 2^32 do not depend on the order, nor on the devices.
  """
  x = jnp.atleast_1d(x)
  bits = x.astype(jnp.uint8) if x.dtype == bool else x
  unsigned = jnp.dtype(f'uint{8 * bits.dtype.itemsize}')
  bits = jax.lax.bitcast_convert_type(bits, unsigned).astype(jnp.uint32)
  hashes = [_mix(bits ^ place) for place in _places(x.shape)]
  # All in one pass, which XLA's CPU backend makes of no other form of it.
  sums = jax.lax.reduce(
    hashes,
    [np.uint32(0)] * _LANES,
    lambda a, b: [x + y for x, y in zip(a, b)],
    range(x.ndim),
  )
  lanes = jnp.stack(sums)
  return jax.lax.with_sharding_constraint(lanes, whole) if whole else lanes


def _places(shape: tuple[int, ...]):
  """For each lane, hashes of the places in an array, to be broadcast to it."""
  *rows, column = (
    jax.lax.broadcasted_iota(
      jnp.uint32, [n if i == j else 1 for j, n in enumerate(shape)], i
    )
    for i in range(len(shape))
  )
  # Not one number for all dimensions: there are leaves of over 2^32 values.
  for row in _mix(np.arange(1, _LANES + 1, dtype=np.uint32)):
    for index in rows:
      row = _mix(row + index * _STEP)
    # Else it would be made again for each value of the row.
    yield jax.lax.optimization_barrier(row) + _mix(column * _STEP)


def _mix(x):
  """A permutation of 32 bits (the finalizer of MurmurHash3, A. Appleby)."""
  x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
  return x ^ (x >> 16)
