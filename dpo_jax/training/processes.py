"""Collectives between the processes of a run, on their hosts.

Every process runs the same program over its part of the devices, and calls
these functions in the same order. Text goes through the key-value store of
`jax.distributed`, which process 0 holds. No call has a timeout: a dead process
ends all others, see process_connections.py. In a single process every function
returns at once.
"""

import itertools
import json
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax._src import distributed
from jax.experimental import multihost_utils

_NO_TIMEOUT = 7 * 24 * 3600 * 1000  # Milliseconds: a week.
_group_ids = itertools.count()
_calls = itertools.count()


def first() -> bool:
  """Whether this is process 0: it alone writes, logs and shows progress."""
  return jax.process_index() == 0


def many() -> bool:
  """Whether there is more than one process."""
  return jax.process_count() > 1


def share(value: Any) -> Any:
  """Process 0's value, in every process: JSON or a NumPy array.

  Collective; only process 0's value is used.
  """
  if not many():
    return value
  key, text = _next_key('share'), None
  if first():
    array = isinstance(value, np.ndarray)
    header = [value.dtype.str, value.shape] if array else None
    text = json.dumps([header, None if array else value])
    _client().key_value_set(key, text)
  header, shared = json.loads(text or _get(key))
  if header is None:
    return shared
  dtype, shape = np.dtype(header[0]), tuple(header[1])
  if not first():
    value = np.zeros(shape, dtype)
  # As bytes: devices would change some values, such as -0.0 and NaN.
  flat = np.frombuffer(np.ascontiguousarray(value).tobytes(), np.uint8)
  flat = np.asarray(multihost_utils.broadcast_one_to_all(flat))
  return flat.view(dtype).reshape(shape).copy()


def agree(what: str, value: str) -> None:
  """Collective; ValueError in every process if their values differ.

  what: names the values in the error. Of values with several lines the error
  shows the lines that differ, and the processes that have them.
  """
  if not many():
    return
  texts = _all_gather(_next_key('agree'), json.dumps(value))
  values = [json.loads(text) for text in texts]
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
    shown.append(f'\n  {place}: {"; ".join(own) or "none of these lines"}')
  raise ValueError(
    f'The processes of this run do not have the same {what}:{"".join(shown)}\n'
    'Start all of them with the same command, on the same files.'
  )


def barrier() -> None:
  """Collective; returns once every process has called it."""
  if many():
    _client().wait_at_barrier(_next_key('barrier'), _NO_TIMEOUT)


class Group:
  """Runs functions in the processes of a run, with one outcome in all of them.

  Collective: every process makes the group and calls the same methods in the
  same order, from one thread at a time, which need not be the main one. Results
  must be JSON. In a single process results and errors are passed on unchanged.
  """

  def __init__(self):
    self._id, self._turn = next(_group_ids), 0

  def in_first(self, fn: Callable[[], Any]) -> Any:
    """Calls `fn` in process 0; its outcome is that of every process."""
    return self._run(fn if first() else lambda: None)[0]

  def in_all(self, fn: Callable[[], Any]) -> None:
    """Calls `fn` in every process; the first error is raised in all."""

    def run():
      fn()  # Its result need not be JSON.

    self._run(run)

  def map(self, fn: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    """[fn(item), ...] in every process; each item is computed once."""
    index, count = jax.process_index(), jax.process_count()
    items = list(items)
    parts = self._run(lambda: [fn(item) for item in items[index::count]])
    return [parts[i % count][i // count] for i in range(len(items))]

  def _run(self, fn: Callable[[], Any]) -> list[Any]:
    """The results of `fn` in each process."""
    if not many():
      return [fn()]
    error = None
    try:
      outcome = json.dumps([fn(), None])
    except Exception as e:
      error, outcome = e, json.dumps([None, _serialize(e)])
    outcomes = [json.loads(text) for text in self._all_gather(outcome)]
    failed = [i for i, (_, failure) in enumerate(outcomes) if failure]
    if error is not None and failed[0] == jax.process_index():
      raise error
    if failed:
      raise _deserialize(failed[0], *outcomes[failed[0]][1]) from error
    return [result for result, _ in outcomes]

  def _all_gather(self, text: str) -> list[str]:
    prefix = f'dpo_jax/group/{self._id}'
    texts = _all_gather(f'{prefix}/{self._turn}', text)
    if self._turn:  # All have read the turn before, as they wrote this one.
      _client().key_value_delete(
        f'{prefix}/{self._turn - 1}/{jax.process_index()}'
      )
    self._turn += 1
    return texts


def _serialize(error: Exception) -> list:
  """[type, errno, message]."""
  if isinstance(error, OSError):
    return ['OSError', error.errno, error.strerror or str(error)]
  return [type(error).__name__, None, str(error)]


def _deserialize(
  process: int, kind: str, number: int | None, text: str
) -> Exception:
  text = f'{text} (process {process})'
  if kind == 'OSError':
    return OSError(number, text)
  known = {'ValueError': ValueError, 'TypeError': TypeError}
  return known.get(kind, RuntimeError)(text)


def _all_gather(key: str, text: str) -> list[str]:
  """The text of each process, in order; no other call uses `key`."""
  _client().key_value_set(f'{key}/{jax.process_index()}', text)
  return [_get(f'{key}/{i}') for i in range(jax.process_count())]


def _get(key: str) -> str:
  return _client().blocking_key_value_get(key, _NO_TIMEOUT)


def _next_key(kind: str) -> str:
  """A key for one call, the same in all processes."""
  return f'dpo_jax/{next(_calls)}/{kind}'


def _client():
  client = distributed.global_state.client
  if client is None:
    raise ValueError(
      f'JAX sees {jax.process_count()} processes, but they were not started as '
      "one run: set distributed.coordinator to 'auto' or to host:port."
    )
  return client
