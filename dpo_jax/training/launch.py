"""Starts the processes of a run, checks that they match, and ends them.

Private names of JAX are used for what it has no public way to ask: whether the
environment names other processes, before waiting for them.
"""

import atexit
import contextlib
import hashlib
import os
import pathlib
import sys
import traceback
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any

import jax
from absl import logging
from jax._src import cloud_tpu_init, clusters

from dpo_jax import registry
from dpo_jax.training import config_diff, processes
from dpo_jax.training import process_connections as connections_lib

# The variables that describe a run of many processes where no launcher does.
COORDINATOR = 'DPO_JAX_COORDINATOR'
NUM_PROCESSES = 'DPO_JAX_NUM_PROCESSES'
PROCESS_ID = 'DPO_JAX_PROCESS_ID'
# Set by SLURM's srun, Open MPI's mpirun, and indexed Jobs of Kubernetes: where
# one of these is set, JAX is asked for the other processes.
_LAUNCHERS = (
  'SLURM_STEP_NODELIST',
  'OMPI_MCA_orte_hnp_uri',
  'JOB_COMPLETION_INDEX',
)
# Those of this process; empty until many processes have started.
_connections: list[connections_lib.Connections] = []


@contextlib.contextmanager
def joined(distributed: Mapping[str, Any]) -> Iterator[None]:
  """Joins the run's processes; on exit waits for the others, or ends them.

  distributed: options of `start`. A process that fails prints its traceback,
  sends its error to the others, which end too, and exits without waiting for
  them, as JAX would. In a single process errors are passed on.
  """
  registry.bind(start, distributed, 'distributed')()
  try:
    yield
  except (Exception, KeyboardInterrupt) as error:
    if not _connections:
      raise
    traceback.print_exc()
    sys.stderr.flush()
    _connections[0].fail(f'{type(error).__name__}: {error}')
  except SystemExit:
    processes.barrier()
    raise
  processes.barrier()


def check_same(config: Mapping[str, Any]) -> None:
  """Collective; ValueError for another config, version or kind of device."""
  processes.agree('config', config_diff.lines(config))
  processes.agree('versions and devices', _versions())


def start(
  *,
  coordinator: str | None = 'auto',
  timeout: int = 300,
  heartbeat: int = 60,
) -> None:
  """Starts `jax.distributed` if this process is one of several.

  Must come before JAX is asked for devices. A second call does nothing.

  coordinator: 'auto' for what TPU pods, SLURM, Open MPI, Kubernetes or
    $DPO_JAX_COORDINATOR say, and one process where none does; 'host:port' of
    process 0; None for one process, whatever the environment says.
  timeout: seconds to wait for the other processes.
  heartbeat: seconds of silence after which a machine counts as dead.

  ValueError for a coordinator that cannot be reached, and for processes that
  are missing after the timeout, with their numbers.
  """
  registry.check_integer('distributed.timeout', timeout, 1)
  registry.check_integer('distributed.heartbeat', heartbeat, 4)
  if jax.distributed.is_initialized():
    return
  process = find(coordinator, timeout)
  if process is None:
    return
  if process.index:
    logging.set_verbosity(logging.WARNING)
  connections, address = connections_lib.connect(process, timeout, heartbeat)
  _connections.append(connections)
  # JAX's preemption service would handle SIGTERM itself.
  jax.config.update('jax_enable_preemption_service', False)
  jax.distributed.initialize(
    address,
    process.count,
    process.index,
    process.local_devices,
    cluster_detection_method='deactivate',
    initialization_timeout=timeout,
    heartbeat_timeout_seconds=heartbeat,
    shutdown_timeout_seconds=heartbeat,
  )
  atexit.register(connections.leave)


def find(
  coordinator: str | None, timeout: int
) -> connections_lib.Process | None:
  """Which of a run's processes this is; None if it is the only one.

  coordinator, timeout: as for `start`.
  """
  if coordinator is None:
    return None
  if coordinator == 'auto':
    coordinator = os.environ.get(COORDINATOR, 'auto')
  if coordinator == 'auto':
    return _detect(timeout)
  host, _, port = coordinator.rpartition(':')
  if not host or not port.isdecimal():
    raise ValueError(
      f'The coordinator is {coordinator!r}; expected host:port of process 0, '
      "such as '10.0.0.1:8476', or 'auto' (distributed.coordinator, "
      f'${COORDINATOR}).'
    )
  numbers = []
  for name, what in (
    (NUM_PROCESSES, 'how many processes there are'),
    (PROCESS_ID, 'which of them this is, from 0 on'),
  ):
    text = os.environ.get(name, '')
    if not text.isdecimal():
      raise ValueError(
        f'The coordinator is {coordinator}, so ${name} must say {what}; it is '
        f'{text!r}.'
      )
    numbers.append(int(text))
  count, index = numbers
  if index >= count:
    raise ValueError(
      f'${PROCESS_ID} is {index}, but ${NUM_PROCESSES} is {count}: expected '
      f'0 to {count - 1}.'
    )
  if count == 1:
    return None
  return connections_lib.Process(coordinator, count, index)


def _detect(timeout: int) -> connections_lib.Process | None:
  """As `find`, from what a launcher has left in the environment."""
  if not (
    cloud_tpu_init.running_in_cloud_tpu_vm
    or any(name in os.environ for name in _LAUNCHERS)
  ):
    return None
  detect = clusters.ClusterEnv.auto_detect_unset_distributed_params
  address, count, index, local = detect(None, None, None, None, None, timeout)
  if address is None or count is None or index is None or count == 1:
    if 'JOB_COMPLETION_INDEX' in os.environ and address is None:
      raise ValueError(
        'This is a pod of an indexed Job, but JAX did not find the other pods: '
        "it needs the package 'kubernetes' and permission to list the Job's "
        f'pods. Or set ${COORDINATOR}, ${NUM_PROCESSES} and ${PROCESS_ID}; for '
        'a single pod, set distributed.coordinator=None.'
      )
    return None
  devices = None if local is None else tuple(local)
  return connections_lib.Process(address, count, index, devices)


def _versions() -> str:
  """What must be the same in all processes beside the config, a line each."""
  names = ('jax', 'jaxlib', 'flax', 'optax', 'numpy')
  versions = {name: metadata.version(name) for name in names}
  package = pathlib.Path(__file__).parents[1]
  sources = b''.join(p.read_bytes() for p in sorted(package.rglob('*.py')))
  versions['dpo_jax'] = f'SHA-256 {hashlib.sha256(sources).hexdigest()[:16]}'
  kind = jax.local_devices()[0].device_kind
  versions['devices of a process'] = f'{jax.local_device_count()} {kind}'
  return '\n'.join(f'{name}: {value}' for name, value in versions.items())
