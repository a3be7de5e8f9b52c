"""The loop: batches in, metrics out, one step ahead of the host."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from dpo_jax import types
from dpo_jax.training import metrics as metrics_lib
from dpo_jax.training import processes, run_log, sharding, tallies


class Window(NamedTuple):
  """Sums over the steps since the last logged row."""

  metrics: dict[str, tuple[float, ...]]
  seconds: float
  tokens: int
  examples: int
  flops: float
  steps: int
  nonfinite: int


EMPTY = Window({}, 0.0, 0, 0, 0.0, 0, 0)


class Progress(NamedTuple):
  """What a run knows beside its state: counts, and the row that is not full.

  skipped: steps so far whose loss or gradient was not finite; in_a_row: those
  of them just before now.
  """

  skipped: int = 0
  in_a_row: int = 0
  window: Window = EMPTY

  def to_json(self) -> dict[str, Any]:
    """JSON values that `from_json` reads."""
    return {**self._asdict(), 'window': self.window._asdict()}

  @classmethod
  def from_json(cls, values: dict[str, Any]) -> 'Progress':
    """The inverse of `to_json`."""
    window = Window(**values['window'])
    sums = {k: tuple(parts) for k, parts in window.metrics.items()}
    return cls(**values | {'window': window._replace(metrics=sums)})


class Action(NamedTuple):
  """run(step, state, progress) after every so many steps, and the last one."""

  every: int
  run: Callable[[int, types.TrainState, Progress], None]


class Numbers(NamedTuple):
  """What a logged row needs beside the metrics of its steps.

  schedule: update -> learning rate. flops: rows -> model FLOPs of their step.
  peak: FLOPs per second of all devices. unit: 'pairs' or 'examples'.
  where: record -> 'file:row'.
  """

  schedule: Callable[[int], types.Array]
  flops: Callable[[types.Batch], float]
  peak: float
  unit: str
  where: Callable[[int], str]


def evaluate(
  eval_step: Callable[..., types.Metrics],
  state: types.TrainState,
  frozen: Any,
  batches: Iterable[types.Batch],
  mesh: jax.sharding.Mesh,
  *,
  num_batches: int,
) -> dict[str, float]:
  """Means over all examples of `num_batches` batches, under 'eval/'.

  With 95 % intervals where a metric carries its squares, and 'eval/examples',
  their number. `batches` are of this process's rows.
  """
  total, examples_R = None, 0
  steps = run_log.progress_bar(batches, 'evaluating', num_batches, leave=False)
  for batch in steps:
    examples_R += (batch.example_weight_RxE > 0).sum(1, dtype=np.int32)
    batch = sharding.shard_rows(mesh, batch)
    out = eval_step(state.params, frozen, state.aux, batch, state.key)
    total = metrics_lib.add(total, out)
  return {
    **metrics_lib.means(total, prefix='eval/'),
    **metrics_lib.intervals(total, prefix='eval/'),
    'eval/examples': int(sharding.fetch_rows(mesh, examples_R).sum()),
  }


def fit(
  train_step: Callable[..., tuple[types.TrainState, types.Metrics]],
  state: types.TrainState,
  frozen: Any,
  batches: Iterator[types.Batch],
  mesh: jax.sharding.Mesh,
  progress: Progress,
  *,
  first_step: int,
  num_steps: int,
  log_every: int,
  max_nonfinite: int,
  numbers: Numbers,
  write: Callable[[int, dict[str, float]], None],
  actions: Sequence[Action],
  stopping: Callable[[], bool],
) -> tuple[types.TrainState, Progress]:
  """Runs the steps from `first_step` up to `num_steps`.

  `write` gets means over each `log_every` of them; `actions` run in their
  order. A step's metrics are fetched after the next one is dispatched, so the
  device never waits for the host, unless an action is due. `batches` are of
  this process's rows, what is written of all. Returns early, all metrics
  fetched, once `stopping()`: of many processes once one is, all after the same
  step. FloatingPointError after `max_nonfinite` steps in a row whose loss or
  gradient was not finite.
  """
  count = tallies.make_count(mesh, numbers.flops)

  def finish(progress: Progress, since, step, batch, metrics, counted):
    """The progress with one more step, the time of its end, and its tally."""
    bad = float(metrics['nonfinite'][0]) > 0
    now = time.perf_counter()
    in_a_row = progress.in_a_row + 1 if bad else 0
    if in_a_row >= max_nonfinite:
      raise FloatingPointError(
        _not_finite(step, batch, metrics, in_a_row, numbers.where)
      )
    tally = counted()
    window = _add(progress.window, tally, metrics, now - since, bad)
    if (step + 1) % log_every == 0 or step + 1 == num_steps:
      # Skipped steps do not advance the schedule.
      lr = float(numbers.schedule(step - progress.skipped))
      write(step + 1, {**_row(window, numbers), 'lr': lr})
      window = EMPTY
    progress = Progress(progress.skipped + bad, in_a_row, window)
    return progress, now, tally.stopping

  late = since = None
  stop = False
  steps = run_log.progress_bar(
    range(first_step, num_steps), 'training', num_steps, start=first_step
  )
  for step in steps:
    batch = next(batches)
    since = since or time.perf_counter()
    state, metrics = train_step(state, frozen, sharding.shard_rows(mesh, batch))
    counted = count(batch, stopping())
    if late:
      progress, since, stop = finish(progress, since, *late)
    late, done = (step, batch, metrics, counted), step + 1
    due = [a for a in actions if done % a.every == 0 or done == num_steps]
    # One of many can't stop before the others know.
    stop = stop or (not processes.many() and stopping())
    if due or stop or done == num_steps:
      progress, _, asked = finish(progress, since, *late)
      late, since, stop = None, None, stop or asked
    for action in due:
      action.run(done, state, progress)
    if stop:
      break
  return state, progress


def _not_finite(step, batch, metrics, count, where) -> str:
  records = np.unique(batch.example_record_RxE)
  places = [where(int(r)) for r in records[records >= 0]]
  more = f' and {len(places) - 10} more' if len(places) > 10 else ''
  part = "This process's part of its" if processes.many() else 'Its'
  means = metrics_lib.means(metrics_lib.add(None, metrics))
  values = ', '.join(f'{name} {value:.4g}' for name, value in means.items())
  return (
    f'Step {step + 1}: loss or gradient not finite, {count} steps in a row. '
    f'Its metrics: {values}. {part} batch holds {", ".join(places[:10])}{more}.'
    ' Lower the learning rate, or look at these records.'
  )


def _add(
  window: Window, tally: tallies.Tally, metrics, seconds: float, bad: bool
) -> Window:
  """The window with one more step; of a skipped one only the costs count."""
  total = window.metrics
  if not bad:
    total = metrics_lib.add(total or None, metrics)
    total = {k: tuple(map(float, parts)) for k, parts in total.items()}
  return Window(
    metrics=total,
    seconds=window.seconds + seconds,
    tokens=window.tokens + tally.tokens,
    examples=window.examples + tally.examples,
    flops=window.flops + tally.flops,
    steps=window.steps + 1,
    nonfinite=window.nonfinite + bad,
  )


def _row(window: Window, numbers: Numbers) -> dict[str, float]:
  return {
    **metrics_lib.means(window.metrics),
    'nonfinite': window.nonfinite / window.steps,
    'tokens_per_second': window.tokens / window.seconds,
    f'{numbers.unit}_per_second': window.examples / window.seconds,
    'seconds_per_step': window.seconds / window.steps,
    'mfu': window.flops / window.seconds / numbers.peak,
  }
