"""Stops a run after a SIGTERM, in all of its processes after the same step."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dpo_jax.training import processes, sharding


@contextlib.contextmanager
def sigterm() -> Iterator[Callable[[], bool]]:
  """Yields `stopping() -> bool`: whether the run has received a SIGTERM.

  With many processes `stopping` is collective: in every process the same call
  returns the same value, which is that of one call before: whether any process
  had received a SIGTERM by then. So a call waits for the devices' work before
  the previous call, not for what was dispatched since.

  A second SIGTERM ends the process at once. The previous handler is restored on
  exit. Outside of the main thread, where Python cannot handle signals, none is
  handled, and a warning says so; with many processes the SIGTERM of another one
  still counts.
  """
  received = []
  with contextlib.ExitStack() as handling:
    if threading.current_thread() is threading.main_thread():
      handling.enter_context(_handled(received))
    else:
      logging.warning(
        'Training runs outside of the main thread, so SIGTERM is not handled: '
        'it ends the process without a checkpoint.'
      )
    if processes.many():
      yield _make_any_process(lambda: bool(received))
    else:
      yield lambda: bool(received)


@contextlib.contextmanager
def _handled(received: list[int]) -> Iterator[None]:
  """Adds to the list on the first SIGTERM."""

  def handle(number, frame):
    del frame
    received.append(number)
    signal.signal(number, signal.SIG_DFL)

  before = signal.signal(signal.SIGTERM, handle)
  try:
    yield
  finally:
    # None for a handler of C code, which Python cannot restore.
    signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _make_any_process(flag: Callable[[], bool]) -> Callable[[], bool]:
  """`flag` of any process, one call late; summed over all devices."""
  axis_types = (AxisType.Auto,)
  mesh = jax.sharding.Mesh(jax.devices(), ('devices',), axis_types=axis_types)
  split = NamedSharding(mesh, PartitionSpec('devices'))
  add = jax.jit(jnp.sum, out_shardings=sharding.replicated(mesh))
  pending = []

  def stopping() -> bool:
    own = jax.make_array_from_callback(
      (mesh.size,), split, lambda _: np.full(1, flag(), np.int32)
    )
    pending.append(add(own))
    return len(pending) > 1 and bool(np.asarray(pending.pop(0)))

  return stopping
