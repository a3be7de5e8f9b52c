"""Data, FSDP and tensor parallelism of the decoder, with explicit collectives.

A mesh has the axes 'data', 'fsdp' and 'tensor'. Rows are split over 'data' and
'fsdp', weights over 'fsdp' and 'tensor' by `RULES`. Inside `jax.shard_map` over
such a mesh a device has its own rows and its shard of each weight. It
communicates only in these functions:

  gather        All-gathers a weight over 'fsdp' where it is used (ZeRO stage 3,
                arXiv:1910.02054; FSDP, arXiv:2304.11277). Backward: sums its
                gradient over all rows and splits it again.
  split_inputs  Before and after the products with a device's columns and rows
  sum_products  of weights ('tensor'; Megatron, arXiv:1909.08053).
  lookup        Reads embeddings from a table that is split over devices.

Outside of `jax.shard_map` (on one device, or where XLA partitions the program)
they get whole arrays and communicate nothing.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from dpo_jax import types
from dpo_jax.models import config as model_config
from dpo_jax.models import specs

DATA, FSDP, TENSOR = AXES = ('data', 'fsdp', 'tensor')
# The axes over which the rows of a batch are split.
ROWS = (DATA, FSDP)
# Logical axis of a parameter (see specs.py) -> mesh axis; others are not split.
RULES = {
  'embed': FSDP,
  'vocab': TENSOR,
  'heads': TENSOR,
  'kv_heads': TENSOR,
  'mlp': TENSOR,
}


def partitions(mesh, config: model_config.ModelConfig, tree):
  """A PartitionSpec for each leaf of a tree of arrays or `Spec`s, by `RULES`.

  A leaf at the path of a parameter is split as that is. One below such a path
  (a factor of a low-rank pair) is split along those axes on which it has the
  parameter's size. Any other leaf (a value head) is replicated. A spec names no
  mesh axis of size 1.
  """
  table, axes = specs.flat_specs(config), split(mesh)

  def partition(path, leaf):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    while name and name not in table:
      name = name.rpartition('/')[0]
    if not name or len(table[name].shape) != len(leaf.shape):
      return PartitionSpec()
    spec = table[name]
    along = (
      RULES.get(logical) if size == whole else None
      for logical, whole, size in zip(spec.axes, spec.shape, leaf.shape)
    )
    return PartitionSpec(*(axis if axis in axes else None for axis in along))

  return jax.tree_util.tree_map_with_path(
    partition,
    tree,
    is_leaf=lambda x: isinstance(x, types.Spec),
  )


def split(mesh, axes: tuple[str, ...] = AXES) -> tuple[str, ...]:
  """The axes that have more than one device."""
  return tuple(axis for axis in axes if mesh.shape[axis] > 1)


def row_groups(mesh: jax.sharding.Mesh) -> int:
  """The number of groups of devices that rows are split over."""
  return math.prod(mesh.shape[axis] for axis in ROWS)


def shardings(mesh: jax.sharding.Mesh, config: model_config.ModelConfig):
  """The parameter tree with a NamedSharding at each leaf.

  ValueError if the mesh does not divide the model's sizes; see `check`.
  """
  check(mesh, config)
  return jax.tree.map(
    lambda part: NamedSharding(mesh, part),
    partitions(mesh, config, specs.param_specs(config)),
    is_leaf=lambda x: isinstance(x, PartitionSpec),
  )


def check(mesh: jax.sharding.Mesh, config: model_config.ModelConfig) -> None:
  """ValueError for sizes of the model that their mesh axis does not divide."""
  c = config
  sizes = {
    'embed': ('d_model', c.d_model),
    'vocab': ('vocab_size', c.vocab_size),
    'heads': ('num_heads', c.num_heads),
    'kv_heads': ('num_kv_heads', c.num_kv_heads),
    'mlp': ('d_ff', c.d_ff),
  }
  errors, sizes_by_axis = [], {axis: [] for axis in AXES}
  for logical, (name, size) in sizes.items():
    axis = RULES[logical]
    sizes_by_axis[axis].append(size)
    if size % mesh.shape[axis]:
      errors.append(f'{name} {size} by mesh.{axis}={mesh.shape[axis]}')
  if errors:
    divisors = '; '.join(
      f'{axis} may be a divisor of {math.gcd(*sizes)}'
      for axis, sizes in sizes_by_axis.items()
      if sizes
    )
    raise ValueError(
      f'The mesh does not divide the model: {", ".join(errors)}. For this '
      f'model {divisors}.'
    )


def _manual_axes(axes: tuple[str, ...]) -> tuple[str, ...]:
  """The axes over which the enclosing `shard_map` has split the arrays."""
  mesh = jax.sharding.get_abstract_mesh()
  return tuple(
    axis for axis in axes if axis in mesh.manual_axes and mesh.shape[axis] > 1
  )


def gather(w, logical_axes: tuple[str, ...], dtype):
  """A weight with these logical axes, gathered over all but 'tensor'.

  A matrix is rounded to `dtype`, in which it is used, for the transfer, and
  returned in its own dtype, in which its gradients are summed.
  """
  if not _manual_axes(ROWS):
    return w
  axes = tuple(map(RULES.get, logical_axes))
  if FSDP not in axes or not _manual_axes((FSDP,)):
    return _vary(w, ROWS)
  return _gather(
    w, axes.index(FSDP), jnp.dtype(dtype if w.ndim > 1 else w.dtype)
  )


def gather_tree(tree, table, dtype):
  """`gather` of each leaf.

  table: the leaves' `Spec`s; a leaf may be one layer of stacked ones.
  """
  return jax.tree.map(
    lambda w, spec: gather(w, spec.axes[-w.ndim :], dtype), tree, table
  )


def without_gathers(fn):
  """`fn`, whose backward pass gathers weights again instead of keeping them.

  Kept, the gathered weights of all layers would be on every device.
  """

  def run(*args):
    split = bool(_manual_axes(ROWS))
    return (jax.checkpoint(fn, policy=_is_no_gather) if split else fn)(*args)

  return run


def _is_no_gather(primitive, *_, call_jaxpr=None, **__) -> bool:
  """Whether a primitive is not one of `gather`'s."""
  inside = {eqn.primitive.name for eqn in call_jaxpr.eqns} if call_jaxpr else ()
  return primitive.name != 'pvary' and 'all_gather' not in inside


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(w, dim, dtype):
  part = _vary(w.astype(dtype), (DATA,))
  whole = jax.lax.all_gather(part, FSDP, axis=dim, tiled=True)
  return whole.astype(w.dtype)


def _gather_fwd(w, dim, dtype):
  return _gather(w, dim, dtype), None


def _gather_bwd(dim, dtype, _, g):
  del dtype
  g = jax.lax.psum_scatter(g, FSDP, scatter_dimension=dim, tiled=True)
  return (_sum(g, (DATA,)),)


_gather.defvjp(_gather_fwd, _gather_bwd)


def split_inputs(x):
  """`x`, replicated over 'tensor', as the input of each device's own columns.

  Backward: sums the gradients from all devices' columns.
  """
  return _vary(x, (TENSOR,))


def sum_products(y):
  """Sums over 'tensor' the products with each device's own rows of a weight."""
  return _sum(y, (TENSOR,))


def vocabulary_is_split() -> bool:
  """Whether the enclosing `shard_map` splits embedding and unembedding."""
  return bool(_manual_axes((FSDP, TENSOR)))


def vocabulary_axis() -> str | None:
  """The mesh axis over which the vocabulary is split here; None: it is not."""
  return next(iter(_manual_axes((TENSOR,))), None)


def vocabulary_blocks(tree, num: int):
  """(blocks, spans_Bx2, padded): a device's rows of the vocabulary, in blocks.

  tree: arrays [v, ...] over this device's v tokens. blocks: the same as [B, U,
  ...]. spans_Bx2: each block's first token id and the one after its last.
  padded: whether zeros fill the last block, as v has no suitable divisor.
  num: the least number of blocks; B is 1 if nothing has to be gathered.
  """
  (size,) = {len(x) for x in jax.tree.leaves(tree)}
  num = _num_blocks(size, num) if _manual_axes((FSDP,)) else 1
  per_block = -(-size // num)
  padded = num * per_block > size

  def split(x):
    if padded:
      widths = [(0, num * per_block - size)] + [(0, 0)] * (x.ndim - 1)
      x = jnp.pad(x, widths)
    return x.reshape(num, per_block, *x.shape[1:])

  starts_B = jnp.arange(num) * per_block
  ends_B = jnp.minimum(starts_B + per_block, size)
  spans_Bx2 = jnp.stack([starts_B, ends_B], axis=1)
  if _manual_axes((TENSOR,)):
    spans_Bx2 = spans_Bx2 + jax.lax.axis_index(TENSOR) * size
  return jax.tree.map(split, tree), spans_Bx2, padded


def _num_blocks(size: int, least: int) -> int:
  """A divisor of `size` from `least` to 3 * `least`, or else about `least`.

  Without a divisor the blocks need padding, which copies all of them.
  """
  least = min(least, size)
  for num in range(least, 3 * least + 1):
    if size % num == 0:
      return num
  per_block = -(-size // least)
  return -(-size // per_block)


def lookup(table_VxD, tokens, dtype, num_blocks: int):
  """table[tokens] in `dtype`; the table may be split over devices.

  A split table is gathered one vocabulary block at a time; from each block
  every device reads the tokens that it holds.
  """
  axes = ('vocab', 'embed')
  if not vocabulary_is_split():
    return gather(table_VxD, axes, dtype)[tokens].astype(dtype)
  blocks, spans_Bx2, _ = vocabulary_blocks(table_VxD, num_blocks)

  def body(found, block):
    part_UxD, (start, end) = block
    rows_UxD = gather(part_UxD, axes, dtype)
    mine = (tokens >= start) & (tokens < end)
    read = rows_UxD[jnp.where(mine, tokens - start, 0)]
    return found + jnp.where(mine[..., None], read, 0).astype(dtype), None

  width = table_VxD.shape[1] * jax.sharding.get_abstract_mesh().shape[FSDP]
  nothing = _vary(jnp.zeros((*tokens.shape, width), dtype), AXES)
  found, _ = jax.lax.scan(jax.checkpoint(body), nothing, (blocks, spans_Bx2))
  return _sum(found, (TENSOR,))


def _vary(x, axes):
  """Marks `x`, replicated over the axes, as varying over them."""
  axes = _manual_axes(axes)
  return jax.lax.pcast(x, axes, to='varying') if axes else x


def _sum(x, axes):
  axes = _manual_axes(axes)
  return jax.lax.psum(x, axes) if axes else x


def over_rows(mesh: jax.sharding.Mesh, config: model_config.ModelConfig):
  """`types.Policy.over_rows` on a mesh: each device runs fn by itself.

  fn sees a device's rows of the batch, and of each tree its parts by
  `partitions`; what it returns is split by rows.
  """
  rows = PartitionSpec(split(mesh, ROWS) or None)

  def over_rows(fn):
    def run(batch: types.Batch, *trees: types.Params):
      parts = (partitions(mesh, config, tree) for tree in trees)
      return jax.shard_map(
        fn, mesh=mesh, in_specs=(rows, *parts), out_specs=rows
      )(batch, *trees)

    return run

  return over_rows
