"""Peak FLOPs per second of devices, from data sheets or measured."""

import functools
import time
from collections.abc import Iterable

import jax
import jax.numpy as jnp

_TPU = 'cloud.google.com/tpu/docs/{}, peak compute'

# device_kind -> (bfloat16, float32, source): dense FLOPs per second of one JAX
# device. float32 is the rate of a matmul at JAX's default precision: TF32 on
# NVIDIA, one bfloat16 pass on TPU. Figures 'with sparsity' in NVIDIA's data
# sheets are halved. The whole name must match: a MIG slice, or a card with
# another power limit, has another peak.
_PEAKS = {
  # 45 and 123 TFLOP/s per chip; a JAX device is one of its two cores.
  'TPU v2': (22.5e12, 22.5e12, _TPU.format('v2')),
  'TPU v3': (61.5e12, 61.5e12, _TPU.format('v3')),
  # From v4 on a JAX device is a chip.
  'TPU v4': (275e12, 275e12, _TPU.format('v4')),
  'TPU v5 lite': (197e12, 197e12, _TPU.format('v5e')),
  'TPU v5e': (197e12, 197e12, _TPU.format('v5e')),
  'TPU v5': (459e12, 459e12, _TPU.format('v5p')),
  'TPU v5p': (459e12, 459e12, _TPU.format('v5p')),
  'TPU v6 lite': (918e12, 918e12, _TPU.format('v6e')),
  'TPU v6e': (918e12, 918e12, _TPU.format('v6e')),
  **dict.fromkeys(
    (
      'NVIDIA A100-SXM4-40GB',
      'NVIDIA A100-SXM4-80GB',
      'NVIDIA A100-PCIE-40GB',
      'NVIDIA A100 80GB PCIe',
    ),
    (312e12, 156e12, 'NVIDIA A100 data sheet'),
  ),
  # 1,979 and 989 TFLOP/s with sparsity.
  'NVIDIA H100 80GB HBM3': (989.5e12, 494.5e12, 'NVIDIA H100 SXM data sheet'),
  'NVIDIA H200': (989.5e12, 494.5e12, 'NVIDIA H200 SXM data sheet'),
  # 1,513 and 756 TFLOP/s with sparsity.
  'NVIDIA H100 PCIe': (756.5e12, 378e12, 'NVIDIA H100 PCIe data sheet'),
  # 4,500 and 2,250 TFLOP/s with sparsity.
  'NVIDIA B200': (2250e12, 1125e12, 'NVIDIA HGX B200 data sheet'),
  # 242 and 120 TFLOP/s with sparsity.
  'NVIDIA L4': (121e12, 60e12, 'NVIDIA L4 data sheet'),
  'NVIDIA L40S': (362e12, 183e12, 'NVIDIA L40S data sheet'),
  # With float32 accumulation, which GeForce cards do at half the rate.
  'NVIDIA GeForce RTX 4090': (
    165.2e12,
    82.6e12,
    'NVIDIA Ada GPU architecture, appendix A',
  ),
  'NVIDIA GeForce RTX 3090': (
    71e12,
    35.6e12,
    'NVIDIA Ampere GA102 GPU architecture, appendix A',
  ),
}


def peak_flops(
  device: jax.Device, *, dtype: str = 'bfloat16'
) -> tuple[float, str]:
  """(FLOPs per second, source of the figure) of dense matmuls.

  dtype: of the activations, 'bfloat16' or 'float32'. CPUs and unlisted devices
  are measured with a float32 matmul, which takes about 0.1 CPU seconds; a busy
  machine gives a lower figure.
  """
  if device.device_kind not in _PEAKS:
    return _measure(device), f'measured float32 matmul ({device.device_kind})'
  bfloat16, float32, source = _PEAKS[device.device_kind]
  return {'bfloat16': bfloat16, 'float32': float32}[dtype], source


def total_peak_flops(
  devices: Iterable[jax.Device], *, dtype: str = 'bfloat16'
) -> tuple[float, str]:
  """`peak_flops` of all devices of a mesh, which must be of one kind.

  The CPU devices of a process share one machine and count once. A process
  measures its own device and takes the others to be as fast.
  """
  devices = list(devices)
  local = next(d for d in devices if d.process_index == jax.process_index())
  peak, source = peak_flops(local, dtype=dtype)
  on_cpu = local.platform == 'cpu'
  processes = {d.process_index for d in devices}
  return peak * len(processes if on_cpu else devices), source


@functools.cache
def _measure(device: jax.Device) -> float:
  """The best rate of several matmuls, large enough to use the whole device."""
  size = 1024 if device.platform == 'cpu' else 4096
  x = jax.device_put(jnp.ones((size, size), jnp.float32), device)
  matmul = jax.jit(jnp.matmul)
  matmul(x, x).block_until_ready()
  best = float('inf')
  cpu_end, end = time.process_time() + 0.1, time.perf_counter() + 0.5
  while best == float('inf') or (
    time.process_time() < cpu_end and time.perf_counter() < end
  ):
    began = time.perf_counter()
    matmul(x, x).block_until_ready()
    best = min(best, time.perf_counter() - began)
  return 2 * size**3 / best
