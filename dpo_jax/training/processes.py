"""The processes of a run: started together, of one mind, ended together.

Every process runs the same program over its part of the devices. What they tell
each other here goes through the service of `jax.distributed`, which process 0
has, and waits for as long as all of them live (see links.py). In a single
process all of it is free.
"""

import atexit
import contextlib
import hashlib
import json
import os
import pathlib
import sys
import traceback
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any

import jax
import numpy as np
from absl import logging
from jax._src import cloud_tpu_init, clusters, distributed
from jax.experimental import multihost_utils

from dpo_jax import registry
from dpo_jax.training import jointly
from dpo_jax.training import links as links_lib

# What says how many processes there are, and which this is, where nothing else
# does.
COORDINATOR = 'DPO_JAX_COORDINATOR'
NUM_PROCESSES = 'DPO_JAX_NUM_PROCESSES'
PROCESS_ID = 'DPO_JAX_PROCESS_ID'
# Where one of these is set, JAX may find more of the same program: SLURM's
# srun, Open MPI's mpirun, an indexed Job of Kubernetes.
_LAUNCHERS = (
  'SLURM_STEP_NODELIST',
  'OMPI_MCA_orte_hnp_uri',
  'JOB_COMPLETION_INDEX',
)
_links: list[links_lib.Links] = []  # One, once there are many processes.
_said = 0  # Calls so far, the same in all processes.


def start(
  *,
  coordinator: str | None = 'auto',
  timeout: int = 300,
  heartbeat: int = 60,
) -> None:
  """Begins `jax.distributed`, where this process is one of several.

  Before anything asks JAX for devices; does nothing the second time.

  coordinator: 'auto' for what TPU pods, SLURM, Open MPI, Kubernetes or
    $DPO_JAX_COORDINATOR say, and one process where none does; 'host:port' of
    process 0; None for one process, whatever the environment says.
  timeout: seconds to wait for the other processes.
  heartbeat: seconds of silence after which a machine counts as dead.

  ValueError, with the numbers, for a coordinator that is not reached and for
  processes that do not come in time.
  """
  registry.check_integer('distributed.timeout', timeout, 1)
  registry.check_integer('distributed.heartbeat', heartbeat, 4)
  if jax.distributed.is_initialized():
    return
  place = find(coordinator, timeout)
  if place is None:
    return
  if place.index:
    logging.set_verbosity(logging.WARNING)
  links, address = links_lib.meet(place, timeout, heartbeat)
  _links.append(links)
  # It would take SIGTERM for itself.
  jax.config.update('jax_enable_preemption_service', False)
  jax.distributed.initialize(
    address,
    place.count,
    place.index,
    place.local_devices,
    cluster_detection_method='deactivate',
    initialization_timeout=timeout,
    heartbeat_timeout_seconds=heartbeat,
    shutdown_timeout_seconds=heartbeat,
  )
  atexit.register(links.leave)


def find(coordinator: str | None, timeout: int) -> links_lib.Place | None:
  """This process's place among others; None where it is alone."""
  if coordinator is None:
    return None
  if coordinator == 'auto':
    coordinator = os.environ.get(COORDINATOR, 'auto')
  if coordinator == 'auto':
    return _detected(timeout)
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
  return links_lib.Place(coordinator, count, index) if count > 1 else None


def _detected(timeout: int) -> links_lib.Place | None:
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
        'This is a pod of an indexed Job, but JAX did not find the others: it '
        "needs the package 'kubernetes' and leave to list the Job's pods. Or "
        f'set ${COORDINATOR}, ${NUM_PROCESSES} and ${PROCESS_ID}; for a pod '
        'that is alone, distributed.coordinator=None.'
      )
    return None
  devices = None if local is None else tuple(local)
  return links_lib.Place(address, count, index, devices)


@contextlib.contextmanager
def joined(distributed: Mapping[str, Any] | None) -> Iterator[None]:
  """`start` with these options, then `together`, of processes that are alike.

  ValueError if versions, sources or devices differ between the processes.
  """
  registry.bind(start, distributed or {}, 'distributed')()
  with together():
    agree('versions and devices', described())
    yield


@contextlib.contextmanager
def together() -> Iterator[None]:
  """Ends every process where one fails; where none does, all leave together.

  A process that fails prints its traceback, tells the others, and is gone: it
  does not wait for them, as JAX would.
  """
  try:
    yield
  except (Exception, KeyboardInterrupt) as error:
    if not _links:
      raise
    traceback.print_exc()
    sys.stderr.flush()
    _links[0].fail(f'{type(error).__name__}: {error}')
  except SystemExit:
    wait('the end')
    raise
  wait('the end')


def described() -> str:
  """What has to be alike in all processes, a line each."""
  names = ('jax', 'jaxlib', 'flax', 'optax', 'numpy')
  versions = {name: metadata.version(name) for name in names}
  package = pathlib.Path(__file__).parents[1]
  sources = b''.join(p.read_bytes() for p in sorted(package.rglob('*.py')))
  versions['dpo_jax'] = f'SHA-256 {hashlib.sha256(sources).hexdigest()[:16]}'
  kind = jax.local_devices()[0].device_kind
  versions |= {'devices of a process': f'{jax.local_device_count()} {kind}'}
  return '\n'.join(f'{name}: {value}' for name, value in versions.items())


def first() -> bool:
  """Whether this is process 0: it alone writes, logs and shows progress."""
  return jax.process_index() == 0


def many() -> bool:
  """Whether there is more than one process."""
  return jax.process_count() > 1


def share(value: Any) -> Any:
  """Process 0's value, in all of them: of JSON, or a NumPy array.

  All call it; what the others give is not looked at.
  """
  if not many():
    return value
  key, text = _key('share'), None
  if first():
    array = isinstance(value, np.ndarray)
    about = [value.dtype.str, value.shape] if array else None
    text = json.dumps([about, None if array else value])
    _client().key_value_set(key, text)
  about, shared = json.loads(text or _get(key))
  if about is None:
    return shared
  dtype, shape = np.dtype(about[0]), tuple(about[1])
  if not first():
    value = np.zeros(shape, dtype)
  # As bytes: no value is lost on the devices, -0.0 and NaN included.
  flat = np.frombuffer(np.ascontiguousarray(value).tobytes(), np.uint8)
  flat = np.asarray(multihost_utils.broadcast_one_to_all(flat))
  return flat.view(dtype).reshape(shape).copy()


def agree(what: str, value: str) -> None:
  """ValueError in every process if their values differ, with what does.

  Of values of several lines, the lines that differ are shown.
  """
  if not many():
    return
  values = [json.loads(text) for text in _gather(json.dumps(value))]
  if len(set(values)) == 1:
    return
  lines = [set(text.split('\n')) for text in values]
  common = set.intersection(*lines)
  holders = {}
  for index, text in enumerate(values):
    holders.setdefault(text, []).append(index)
  shown = []
  for text, indices in holders.items():
    name = 'process' if len(indices) == 1 else 'processes'
    own = [line.strip() for line in text.split('\n') if line not in common]
    place = f'{name} {", ".join(map(str, indices))}'
    shown.append(f'\n  {place}: {"; ".join(own) or "nothing of this"}')
  raise ValueError(
    f'The processes of this run do not have the same {what}:{"".join(shown)}\n'
    'Start all of them with the same command, on the same files.'
  )


def wait(what: str) -> None:
  """Returns when every process has come here."""
  if many():
    del what  # For who reads the call.
    _client().wait_at_barrier(_key('wait'), jointly.FOREVER)


def check_mesh(mesh: jax.sharding.Mesh) -> None:
  """ValueError for processes of which a mesh has no device."""
  used = {device.process_index for device in mesh.devices.flat}
  idle = sorted(set(range(jax.process_count())) - used)
  if idle:
    raise ValueError(
      f'The mesh has {mesh.size} of {jax.device_count()} devices, and none of '
      f'those of processes {", ".join(map(str, idle))} of '
      f'{jax.process_count()}. Leave mesh.devices out, or start fewer.'
    )


def _client():
  client = distributed.global_state.client
  if client is None:
    raise ValueError(
      f'JAX sees {jax.process_count()} processes, but they were not started as '
      "one run: set distributed.coordinator to 'auto' or to host:port."
    )
  return client


def _key(kind: str) -> str:
  """A name of its own for every call, the same in all processes."""
  global _said
  _said += 1
  return f'dpo_jax/{_said}/{kind}'


def _get(key: str) -> str:
  return _client().blocking_key_value_get(key, jointly.FOREVER)


def _gather(text: str) -> list[str]:
  """What each process gives, in their order."""
  _client()  # Says so where the processes are no run.
  return jointly.exchange(_key('gather'), text)
