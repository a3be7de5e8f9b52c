"""The parameters as decoding reads them: each layer's own, no stack."""

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from dpo_jax import types
from dpo_jax.models import decoder


def unstack(
  params: types.Params, compute: decoder.Compute, *, num_sequences: int = 1
) -> types.Params:
  """Parameters for `decode`: `layers` becomes a tuple with one tree per layer.

  A scan over stacked layers would copy each layer's weights in every step,
  which takes a third of the time for a single sequence. On a CPU the layers are
  views of the stacked arrays, elsewhere copies. All but the norms are cast to
  the compute dtype, as `forward` does. Shardings are kept.

  num_sequences: for more than one, kernels on one CPU are copied, transposed,
  to `kernel_out_in`: with few sequences their products take a fourth less time
  (see layers.py).
  """

  def cast(path, x):
    is_norm = any('norm' in str(entry.key) for entry in path)
    return x if is_norm else x.astype(compute.dtype)

  params = jax.tree_util.tree_map_with_path(cast, params)
  stacked = params['layers']
  device, *others = jax.tree.leaves(stacked)[0].devices()
  if num_sequences > 1 and device.platform == 'cpu' and not others:
    stacked = _transposed(stacked)
  leaves, tree = jax.tree.flatten(stacked)
  layers = zip(*(_split(x, device) for x in leaves))
  return {**params, 'layers': tuple(map(tree.unflatten, layers))}


def _transposed(w):
  """Each `kernel` of a tree of dicts as `kernel_out_in`, a NumPy view.

  JAX copies such a view faster than it transposes an array of its own.
  """
  if not isinstance(w, dict):
    return w
  out = {k: _transposed(x) for k, x in w.items() if k != 'kernel'}
  if 'kernel' in w:
    out['kernel_out_in'] = np.asarray(w['kernel']).swapaxes(1, 2)
  return out


def _split(x_Yx: types.Array | np.ndarray, device) -> list[types.Array]:
  if isinstance(x_Yx, np.ndarray):
    return _views(x_Yx, device)
  is_sharded = len(x_Yx.sharding.device_set) > 1
  if device.platform != 'cpu':
    return _slices(x_Yx) if is_sharded else list(x_Yx)
  if not is_sharded:
    return _views(np.asarray(x_Yx), device)
  spec = PartitionSpec(*x_Yx.sharding.spec[1:])
  sharding = NamedSharding(x_Yx.sharding.mesh, spec)
  shards = [
    _views(np.asarray(x.data), x.device) for x in x_Yx.addressable_shards
  ]
  return [
    jax.make_array_from_single_device_arrays(x_Yx.shape[1:], sharding, list(x))
    for x in zip(*shards)
  ]


def _views(x_Yx: np.ndarray, device) -> list[types.Array]:
  return [jax.device_put(x, device, may_alias=True) for x in x_Yx]


@jax.jit
def _slices(x_Yx):
  return list(x_Yx)
