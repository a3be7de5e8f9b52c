"""The mesh of devices, and where rows, parameters and the state lie on it."""

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
  """A mesh of these sizes; one of them may be -1, for the remaining devices.

  data: groups of devices, each with a full copy of the parameters. fsdp:
  devices that split a group's parameters and its rows. tensor: devices that
  split heads and columns, and compute the same rows. devices: how many are
  used, the first ones; None for all devices of all processes. ValueError for
  sizes whose product is not the number of devices, and for a process without a
  device in the mesh.
  """
  available = jax.device_count()
  count = available if devices is None else devices
  if not 1 <= count <= available:
    raise ValueError(
      f'mesh.devices is {devices}, but there are {available} devices '
      f'({jax.default_backend()}).'
    )
  mesh = mesh_of(jax.devices()[:count], data=data, fsdp=fsdp, tensor=tensor)
  used = {device.process_index for device in mesh.devices.flat}
  idle = sorted(set(range(jax.process_count())) - used)
  if idle:
    raise ValueError(
      f'The mesh has {mesh.size} of {available} devices, and none of those of '
      f'processes {", ".join(map(str, idle))} of {jax.process_count()}. Leave '
      'mesh.devices out, or start fewer processes.'
    )
  return mesh


def mesh_of(
  devices: Sequence, *, data: int = -1, fsdp: int = 1, tensor: int = 1
) -> jax.sharding.Mesh:
  """As `make_mesh`, of these devices, which may be simulated: see plan.py."""
  sizes = _sizes(dict(data=data, fsdp=fsdp, tensor=tensor), devices)
  axis_types = (AxisType.Auto,) * len(sizes)
  grid = _grid(sizes, devices)
  return jax.sharding.Mesh(grid, parallel.AXES, axis_types=axis_types)


def _grid(sizes: tuple[int, ...], devices: Sequence) -> np.ndarray:
  """The devices as an array of these sizes, close ones along the last axes.

  TPUs are ordered by their place in the torus of a slice, with slices along the
  first axes; other devices in their given order, process by process.
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
  """The sizes, with -1 replaced."""
  for name, size in given.items():
    registry.check_integer(f'mesh.{name}', size, -1)
  count = len(devices)
  shown = ' x '.join(f'{name}={size}' for name, size in given.items())
  known = [size for size in given.values() if size != -1]
  if any(size < 1 for size in known) or len(known) < len(given) - 1:
    raise ValueError(
      f'The mesh is {shown}: expected sizes of at least 1, and -1 (the '
      'remaining devices) for at most one of them.'
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


def replicated(mesh) -> NamedSharding:
  """The sharding of an array that every device has a full copy of."""
  return NamedSharding(mesh, PartitionSpec())


def replicate(mesh, tree):
  """Puts a full copy of a tree of arrays on every device."""
  place = replicated(mesh)
  if place.is_fully_addressable:
    return jax.device_put(tree, place)
  return jax.tree.map(
    lambda x: jax.make_array_from_callback(x.shape, place, lambda i: x[i]),
    jax.tree.map(np.asarray, tree),
  )


def with_shardings(shapes, shardings):
  """A tree of ShapeDtypeStructs with these shardings."""
  return jax.tree.map(
    lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
    shapes,
    shardings,
  )


def offload_optimizer(shardings: types.TrainState) -> types.TrainState:
  """The shardings of a state, with the optimizer's arrays in host memory.

  A step moves them to the devices and back, which trades time for memory.
  Scalars stay on the devices.
  """

  def offload(place):
    return place.with_memory_kind('pinned_host') if place.spec else place

  opt_state = jax.tree.map(offload, shardings.opt_state)
  return shardings.replace(opt_state=opt_state)


def of_state(
  mesh, params, shapes: types.TrainState, *, offload: bool = False
) -> types.TrainState:
  """A sharding for each leaf of a state of these parameters and shapes.

  offload: see `offload_optimizer`.
  """
  places = shardings_like(mesh, params, shapes)
  return offload_optimizer(places) if offload else places


def shardings_like(mesh, params, tree):
  """A sharding for each leaf of `tree`, taken from the parameters.

  A leaf whose path ends in a parameter's path (a moment, a copy of the
  reference) gets that parameter's sharding; if it lacks one of the parameter's
  axes (a factored moment), that of the remaining axes. All other leaves are
  replicated. Both trees hold arrays or ShapeDtypeStructs, those of `params`
  with a NamedSharding.
  """
  # Optimizers may hold parts of the tree, so a leaf is found by any end of a
  # parameter's path that no other parameter has.
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
    return replicated(mesh) if spec is None else NamedSharding(mesh, spec)

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
