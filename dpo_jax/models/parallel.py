"""What a device does that holds a part of each weight and a part of the rows.

A mesh has the axes 'data' and 'fsdp', over which rows are split, and 'tensor'.
Weights are split over 'fsdp' and 'tensor' by `RULES`. Where a model runs inside
`jax.shard_map` over such a mesh, a device reads its own rows and its part of
each weight, and what follows is all that it says to others:

  gather        a weight's parts over 'fsdp', where the weight is used (ZeRO
                stage 3, arXiv:1910.02054; FSDP, arXiv:2304.11277); backward,
                its gradient is summed over the rows and split again
  split_inputs  what enters products with columns of weights ('tensor',
  sum_products  Megatron, arXiv:1909.08053), and what leaves those with rows
  lookup        embeddings, of a table of which devices have parts

Outside of `jax.shard_map` these do nothing, and the same functions see whole
arrays: in a run on one device, and where XLA splits the work by itself.
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
# Over which the rows of a batch are split.
ROWS = (DATA, FSDP)
# Logical axis of a parameter (see `specs`) -> mesh axis; others are not split.
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
  """Those of the axes that have more than one device."""
  return tuple(axis for axis in axes if mesh.shape[axis] > 1)


def shardings(mesh: jax.sharding.Mesh, config: model_config.ModelConfig):
  """The parameter tree with a NamedSharding at each leaf.

  ValueError for sizes that the mesh does not divide; see `check`.
  """
  check(mesh, config)
  return jax.tree.map(
    lambda part: NamedSharding(mesh, part),
    partitions(mesh, config, specs.param_specs(config)),
    is_leaf=lambda x: isinstance(x, PartitionSpec),
  )


def check(mesh: jax.sharding.Mesh, config: model_config.ModelConfig) -> None:
  """ValueError for axes of the model that their mesh axis does not divide."""
  c = config
  sizes = {
    'embed': ('d_model', c.d_model),
    'vocab': ('vocab_size', c.vocab_size),
    'heads': ('num_heads', c.num_heads),
    'kv_heads': ('num_kv_heads', c.num_kv_heads),
    'mlp': ('d_ff', c.d_ff),
  }
  wrong, common = [], {axis: [] for axis in AXES}
  for logical, (name, size) in sizes.items():
    axis = RULES[logical]
    common[axis].append(size)
    if size % mesh.shape[axis]:
      wrong.append(f'{name} {size} by mesh.{axis}={mesh.shape[axis]}')
  if wrong:
    may = '; '.join(
      f'{axis} may be a divisor of {math.gcd(*sizes)}'
      for axis, sizes in common.items()
      if sizes
    )
    raise ValueError(
      f'The mesh does not divide the model: {", ".join(wrong)}. For this model '
      f'{may}.'
    )


def _here(axes: tuple[str, ...]) -> tuple[str, ...]:
  """Those of the axes over which this code sees one device's part."""
  mesh = jax.sharding.get_abstract_mesh()
  return tuple(
    axis for axis in axes if axis in mesh.manual_axes and mesh.shape[axis] > 1
  )


def gather(w, logical_axes: tuple[str, ...], dtype):
  """A weight of these axes, whole but for 'tensor'.

  A matrix is sent in `dtype`, in which it is used, and comes out with these
  values in its own, in which its gradients then add up.
  """
  if not _here(ROWS):
    return w
  axes = tuple(map(RULES.get, logical_axes))
  if FSDP not in axes or not _here((FSDP,)):
    return _vary(w, ROWS)
  return _gather(
    w, axes.index(FSDP), jnp.dtype(dtype if w.ndim > 1 else w.dtype)
  )


def gather_tree(tree, table, dtype):
  """`gather` of each leaf; `table` has its `Spec`, of stacked layers or not."""
  return jax.tree.map(
    lambda w, spec: gather(w, spec.axes[-w.ndim :], dtype), tree, table
  )


def without_gathers(fn):
  """`fn`, keeping all for its backward pass but what was gathered.

  Kept, the weights of all layers would be on every device.
  """

  def run(*args):
    split = bool(_here(ROWS))
    return (jax.checkpoint(fn, policy=_is_no_gather) if split else fn)(*args)

  return run


def _is_no_gather(primitive, *_, call_jaxpr=None, **__) -> bool:
  """Whether it is nothing that `gather` does."""
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
  """`x`, whole on all devices of 'tensor', as input of their own columns.

  Backward, the gradients that come from these columns are summed.
  """
  return _vary(x, (TENSOR,))


def sum_products(y):
  """The sum over 'tensor' of products with a device's own rows of a weight."""
  return _sum(y, (TENSOR,))


def vocabulary_is_split() -> bool:
  """Whether this code sees a part of the matrices that have a vocabulary."""
  return bool(_here((FSDP, TENSOR)))


def vocabulary_axis() -> str | None:
  """The axis over which this code sees one device's part of the vocabulary."""
  return next(iter(_here((TENSOR,))), None)


def vocabulary_blocks(tree, num: int):
  """Arrays by rows of the vocabulary, in blocks of these.

  Of a device's part [v, ...]: arrays [B, U, ...]; the spans [B, 2] of tokens
  that the blocks are of; and whether the last one goes on with zeros, as v has
  no fitting divisor. B is 1 where nothing has to be gathered, otherwise enough
  for blocks no larger than `num` would make them.
  """
  (size,) = {len(x) for x in jax.tree.leaves(tree)}
  num = _fitting(size, num) if _here((FSDP,)) else 1
  per_block = -(-size // num)
  padded = num * per_block > size

  def split(x):
    if padded:
      more = [(0, num * per_block - size)] + [(0, 0)] * (x.ndim - 1)
      x = jnp.pad(x, more)
    return x.reshape(num, per_block, *x.shape[1:])

  starts_B = jnp.arange(num) * per_block
  ends_B = jnp.minimum(starts_B + per_block, size)
  spans_Bx2 = jnp.stack([starts_B, ends_B], axis=1)
  if _here((TENSOR,)):
    spans_Bx2 = spans_Bx2 + jax.lax.axis_index(TENSOR) * size
  return jax.tree.map(split, tree), spans_Bx2, padded


def _fitting(size: int, least: int) -> int:
  """How many blocks a size takes: a divisor, unless all are far above `least`.

  Where it is none, blocks need padding, a copy of all of them.
  """
  least = min(least, size)
  for num in range(least, 3 * least + 1):
    if size % num == 0:
      return num
  per_block = -(-size // least)
  return -(-size // per_block)


def lookup(table_VxD, tokens, dtype, num_blocks: int):
  """table[tokens] in `dtype`, of a table that may be split over devices.

  It is gathered by blocks of the vocabulary, of each of which all devices read
  the tokens that are there.
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
  """`x`, the same on all devices of the axes, as what may differ there."""
  axes = _here(axes)
  return jax.lax.pcast(x, axes, to='varying') if axes else x


def _sum(x, axes):
  axes = _here(axes)
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
