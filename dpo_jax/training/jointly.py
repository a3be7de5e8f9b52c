"""What the processes of a run do jointly ends alike in all of them.

Values and errors go as text through the service of `jax.distributed`: unlike
what devices tell each other, that may happen in a thread beside a step. A dead
process is for others to notice, see links.py.
"""

import itertools
import json
from collections.abc import Callable, Iterable
from typing import Any

import jax
from jax._src import distributed

FOREVER = 7 * 24 * 3600 * 1000  # Milliseconds.
_names = itertools.count()


def exchange(key: str, text: str) -> list[str]:
  """What each process gives under a key of this call's own, in their order."""
  state = distributed.global_state
  state.client.key_value_set(f'{key}/{state.process_id}', text)
  return [
    state.client.blocking_key_value_get(f'{key}/{i}', FOREVER)
    for i in range(state.num_processes)
  ]


class Circle:
  """All processes make it, and call the same of its methods in the same order.

  From one thread at a time, whichever that is. What is told is JSON. In a
  single process nothing is told, and errors are raised as they are.
  """

  def __init__(self):
    self._name, self._turn = next(_names), 0

  def first(self, fn: Callable[[], Any]) -> Any:
    """What `fn` returns in process 0, or raises there, in all of them."""
    return self._tell(fn if jax.process_index() == 0 else _nothing)[0]

  def each(self, fn: Callable[[], Any]) -> None:
    """Calls `fn` in all; the first error of any is raised in all."""

    def run():
      fn()

    self._tell(run)

  def map(self, fn: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    """`fn` of each item, in one of the processes each; all get the list."""
    index, count = jax.process_index(), jax.process_count()
    items = list(items)
    parts = self._tell(lambda: [fn(item) for item in items[index::count]])
    return [parts[i % count][i // count] for i in range(len(items))]

  def _tell(self, fn: Callable[[], Any]) -> list[Any]:
    """What `fn` returned in each process."""
    if jax.process_count() == 1:
      return [fn()]
    mine, error = None, None
    try:
      mine = json.dumps([fn(), None])
    except Exception as e:
      error, mine = e, json.dumps([None, _described(e)])
    told = [json.loads(text) for text in self._exchange(mine)]
    failed = [i for i, (_, described) in enumerate(told) if described]
    if error is not None and failed[0] == jax.process_index():
      raise error
    if failed:
      raise _error(failed[0], *told[failed[0]][1]) from error
    return [value for value, _ in told]

  def _exchange(self, text: str) -> list[str]:
    state, at = distributed.global_state, f'dpo_jax/jointly/{self._name}'
    texts = exchange(f'{at}/{self._turn}', text)
    if self._turn:  # All have this turn's, so none still reads the last one's.
      last = f'{at}/{self._turn - 1}/{state.process_id}'
      state.client.key_value_delete(last)
    self._turn += 1
    return texts


def _nothing() -> None:
  return None


def _described(error: Exception) -> list:
  kind = 'OSError' if isinstance(error, OSError) else type(error).__name__
  number = error.errno if isinstance(error, OSError) else None
  text = error.strerror if isinstance(error, OSError) else None
  return [kind, number, text or str(error)]


def _error(process: int, kind: str, number: int | None, text: str) -> Exception:
  text = f'{text} (process {process})'
  if kind == 'OSError':
    return OSError(number, text)
  known = {'ValueError': ValueError, 'TypeError': TypeError}
  return known.get(kind, RuntimeError)(text)
