"""TPU slices to compile for, without access to their chips."""

import importlib.util
import os

import jax
from jax.experimental import topologies

# Slices of a family from small to large, up to 64 chips.
SLICES = {
  'v5e': ('1x1', '2x2', '2x4', '4x4', '4x8', '8x8'),
  'v5p': ('2x2x1', '2x2x2', '2x2x4', '2x4x4', '4x4x4'),
  'v6e': ('1x1', '2x2', '2x4', '4x4', '4x8', '8x8'),
}
# device_kind -> bytes of HBM: cloud.google.com/tpu/docs/{v5e,v5p,v6e}.
HBM = {'TPU v5 lite': 16 << 30, 'TPU v5': 95 << 30, 'TPU v6 lite': 32 << 30}


def slices(topology: str) -> list[str]:
  """The slices of a family, from small to large; of a slice, itself alone."""
  sizes = SLICES.get(topology)
  return [f'{topology}:{size}' for size in sizes] if sizes else [topology]


def devices(topology: str) -> list[jax.Device]:
  """The devices of 'cpu:N', or of a TPU slice such as 'v5e:2x4'.

  ValueError for an unknown slice, for more CPU devices than this process has,
  and if the compiler, libtpu, is not installed.
  """
  family, _, size = topology.partition(':')
  if family == 'cpu':
    available = jax.devices('cpu')
    if not size.isdigit() or not 1 <= int(size) <= len(available):
      raise ValueError(
        f'The topology is {topology!r}, and this process has {len(available)} '
        f'CPU devices: expected cpu:1 to cpu:{len(available)}.'
      )
    return available[: int(size)]
  if not has_compiler():
    raise ValueError(
      f'Compiling for {topology!r} needs the TPU compiler: pip install libtpu.'
    )
  # No chip is used, so another process may use those of this host.
  os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
  # Without a chip, libtpu warns that it cannot determine these.
  os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
  os.environ.setdefault('TPU_ACCELERATOR_TYPE', 'v5litepod-1')
  try:
    return topologies.get_topology_desc(topology, 'tpu').devices
  except jax.errors.JaxRuntimeError as error:
    raise ValueError(
      f'There is no topology {topology!r} ({error}). Expected a family '
      f'({", ".join(SLICES)}) or a slice of one, such as v5e:2x4 or v5p:2x2x2.'
    ) from error


def has_compiler() -> bool:
  """Whether libtpu is installed."""
  named = 'TPU_LIBRARY_PATH' in os.environ
  return named or importlib.util.find_spec('libtpu') is not None
