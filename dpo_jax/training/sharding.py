"""The mesh, and what lies where on it: rows, parameters, the state."""

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dpo_jax import registry, types
from dpo_jax.models import parallel


def make_mesh(
  *, data: int = -1, fsdp: int = 1, tensor: int = 1, devices: int | None = None
) -> jax.sharding.Mesh:
  """A mesh of these sizes; one of them may be -1, for what is left.

  data: devices, or groups of them, with parameters of their own. fsdp: devices
  that share a group's parameters, and its rows. tensor: devices that share
  those rows, heads and columns. devices: the first so many; None for all of all
  processes. ValueError for sizes whose product is not their number.
  """
  available = jax.device_count()
  count = available if devices is None else devices
  if not 1 <= count <= available:
    raise ValueError(
      f'mesh.devices is {devices}, but there are {available} devices '
      f'({jax.default_backend()}).'
    )
  sizes = dict(data=data, fsdp=fsdp, tensor=tensor)
  return mesh_of(jax.devices()[:count], **sizes)


def mesh_of(
  devices: Sequence, *, data: int = -1, fsdp: int = 1, tensor: int = 1
) -> jax.sharding.Mesh:
  """`make_mesh` of these devices, which need not be there: see plan.py."""
  sizes = _sizes(dict(data=data, fsdp=fsdp, tensor=tensor), devices)
  axis_types = (AxisType.Auto,) * len(sizes)
  grid = _grid(sizes, devices)
  return jax.sharding.Mesh(grid, parallel.AXES, axis_types=axis_types)


def _grid(sizes: tuple[int, ...], devices: Sequence) -> np.ndarray:
  """The devices as an array of these sizes, near ones along the last axes.

  TPUs by their places in the torus of a slice, and slices along the first axes.
  Others in their order, which goes process by process.
  """
  if devices[0].platform != 'tpu':
    return np.array(devices).reshape(sizes)
  slices = len({getattr(device, 'slice_index', 0) for device in devices})
  between = []
  for size in sizes:
    between.append(math.gcd(size, slices))
    slices //= between[-1]
  within = [size // part for size, part in zip(sizes, between)]
  try:
    if math.prod(between) == 1:
      return mesh_utils.create_device_mesh(
        sizes, devices, allow_split_physical_axes=True
      )
    return mesh_utils.create_hybrid_device_mesh(
      within, between, devices, allow_split_physical_axes=True
    )
  except (NotImplementedError, AssertionError, ValueError) as error:
    raise ValueError(
      f'No mesh of {sizes} ({", ".join(parallel.AXES)}) can be laid on these '
      f'{len(devices)} chips: {error}'
    ) from error


def _sizes(given: dict[str, int], devices: Sequence) -> tuple[int, ...]:
  """The sizes with -1 filled in."""
  for name, size in given.items():
    registry.check_integer(f'mesh.{name}', size, -1)
  count = len(devices)
  shown = ' x '.join(f'{name}={size}' for name, size in given.items())
  known = [size for size in given.values() if size != -1]
  if any(size < 1 for size in known) or len(known) < len(given) - 1:
    raise ValueError(
      f'The mesh is {shown}: expected sizes of at least 1, and -1 (what is '
      'left) for at most one of them.'
    )
  product = math.prod(known)
  left = count // product if len(known) < len(given) else 1
  if product * left != count:
    processes = len({device.process_index for device in devices})
    raise ValueError(
      f'The mesh is {shown}, whose product is {product}, but there are {count} '
      f'devices ({devices[0].device_kind}, of {processes} processes).'
    )
  return tuple(left if size == -1 else size for size in given.values())


def rows_per_batch(
  mesh,
  batch_size: int,
  accumulation_steps: int = 1,
  *,
  section: str = 'train_batches',
) -> int:
  """Rows that give each group of devices one in every accumulation step.

  ValueError, which names the section that the batch size is of, for a batch
  that does not divide.
  """
  registry.check_at_least('batch_size', batch_size, 1)
  registry.check_at_least('accumulation_steps', accumulation_steps, 1)
  groups = parallel.row_groups(mesh)
  rows = groups * accumulation_steps
  if batch_size % rows:
    shape = mesh.shape
    share, rest = divmod(batch_size, groups)
    other = '' if rest else f', or a divisor of {share} as '
    other += '' if rest else 'step.accumulation_steps'
    raise ValueError(
      f'A batch of {batch_size} examples ({section}.batch_size) does not '
      f'divide into {groups} groups of devices (mesh data={shape["data"]} x '
      f'fsdp={shape["fsdp"]}) x {accumulation_steps} accumulation steps = '
      f'{rows} rows. Take a multiple of {rows}{other}.'
    )
  return rows


def whole(mesh) -> NamedSharding:
  """That of what every device has a copy of."""
  return NamedSharding(mesh, PartitionSpec())


def replicate(mesh, tree):
  """Puts a whole copy of a tree of arrays on every device."""
  place = whole(mesh)
  if place.is_fully_addressable:
    return jax.device_put(tree, place)
  return jax.tree.map(
    lambda x: jax.make_array_from_callback(x.shape, place, lambda i: x[i]),
    jax.tree.map(np.asarray, tree),
  )


def placed(shapes, shardings):
  """ShapeDtypeStructs of arrays that lie as these say."""
  return jax.tree.map(
    lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
    shapes,
    shardings,
  )


def offloaded(places: types.TrainState) -> types.TrainState:
  """Shardings of a state whose optimizer's arrays the hosts keep.

  A step brings them to the devices and back: memory for time. Scalars stay.
  """

  def move(place):
    return place.with_memory_kind('pinned_host') if place.spec else place

  return places.replace(opt_state=jax.tree.map(move, places.opt_state))


def of_state(
  mesh, params, shapes: types.TrainState, *, offload_optimizer: bool = False
) -> types.TrainState:
  """A sharding for each leaf of a state of these parameters and shapes."""
  places = like_params(mesh, params, shapes)
  return offloaded(places) if offload_optimizer else places


def like_params(mesh, params, tree):
  """A sharding for each leaf of `tree`: those of the parameters in it.

  A leaf whose path ends in a parameter's (a moment, a copy of the reference)
  lies as that does; one that lacks one of its axes (a factored moment) as the
  others do. Anything else is whole on every device. Both trees are of arrays or
  ShapeDtypeStructs, those of `params` with a NamedSharding.
  """
  # Optimizers may take the tree apart: any end of a path that only one has.
  known = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    keys = _keys(path)
    for i in range(len(keys)):
      other = keys[i:] in known and i > 0
      found = None if other else (leaf.shape, leaf.sharding.spec)
      known[keys[i:]] = found

  def place(path, leaf):
    keys = _keys(path)
    ends = (keys[i:] for i in range(len(keys)))
    found = next((known[end] for end in ends if known.get(end)), None)
    spec = None if found is None else _spec_of(leaf.shape, *found)
    return whole(mesh) if spec is None else NamedSharding(mesh, spec)

  return jax.tree_util.tree_map_with_path(place, tree)


def _keys(path) -> tuple[str, ...]:
  return tuple(e.key for e in path if isinstance(e, jax.tree_util.DictKey))


def _spec_of(shape, param_shape, spec) -> PartitionSpec | None:
  if shape == param_shape:
    return spec
  parts = (*spec, *[None] * (len(param_shape) - len(spec)))
  specs = {
    parts[:i] + parts[i + 1 :]
    for i in range(len(param_shape))
    if param_shape[:i] + param_shape[i + 1 :] == shape
  }
  return PartitionSpec(*specs.pop()) if len(specs) == 1 else None
