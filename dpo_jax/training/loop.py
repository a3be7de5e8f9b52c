"""The training loop and the evaluation loop: batches in, metrics out."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from dpo_jax import types
from dpo_jax.training import metrics as metrics_lib
from dpo_jax.training import processes, run_log

# Metrics of a step that count what it processes, skipped or not -> the logged
# rate.
RATES = {
  'tokens': 'tokens_per_second',
  'pairs': 'pairs_per_second',
  'examples': 'examples_per_second',
}
COUNTS = (*RATES, 'flops', 'nonfinite')


class Window(NamedTuple):
  """Sums of metrics, and seconds, of the steps since the last logged row."""

  metrics: dict[str, tuple[float, ...]]
  seconds: float


EMPTY = Window({}, 0.0)


class Progress(NamedTuple):
  """What a run counts beside its state, and the window of the next row.

  skipped: steps so far whose loss or gradient was not finite; in_a_row: how
  many of them were the last ones.
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
    if set(values['window']) != set(Window._fields):
      # Of an older version: its row of the log is left out.
      return cls(**values | {'window': EMPTY})
    window = Window(**values['window'])
    sums = {k: tuple(parts) for k, parts in window.metrics.items()}
    return cls(**values | {'window': window._replace(metrics=sums)})


class Action(NamedTuple):
  """run(step, state, progress) after every so many steps, and the last one."""

  every: int
  run: Callable[[int, types.TrainState, Progress], None]


class RowContext(NamedTuple):
  """What a logged row needs beside the metrics of its steps.

  schedule: update -> learning rate. peak: FLOPs per second of all devices.
  where: record -> 'file:row', for errors.
  """

  schedule: Callable[[int], types.Array]
  peak: float
  where: Callable[[int], str]


def evaluate(
  eval_step: Callable[..., tuple[types.Metrics, Any]],
  state: types.TrainState,
  frozen: Any,
  batches: Iterable[types.Batch],
  *,
  num_batches: int,
) -> tuple[types.Metrics, list[Any]]:
  """(sums of the metrics over all batches, what each batch gave by example).

  eval_step: see `step.make_eval_step`. Of `state` it reads parameters, aux and
  key.
  """
  total, examples = None, []
  steps = run_log.progress_bar(batches, 'evaluating', num_batches, leave=False)
  for batch in steps:
    out, of_batch = eval_step(state.params, frozen, state.aux, batch, state.key)
    total = metrics_lib.add(total, out)
    examples.append(of_batch)
  return total, examples


def held_out_row(total: types.Metrics) -> dict[str, float]:
  """Means over all examples under 'eval/', and 'eval/examples', their number.

  With 95 % intervals where a metric carries its squares.
  """
  means = {k: parts for k, parts in total.items() if k != 'examples'}
  return {
    **metrics_lib.means(means, prefix='eval/'),
    **metrics_lib.intervals(means, prefix='eval/'),
    'eval/examples': int(total['examples'][0]),
  }


def fit(
  train_step: Callable[..., tuple[types.TrainState, types.Metrics]],
  state: types.TrainState,
  frozen: Any,
  batches: Iterator[types.Batch],
  progress: Progress,
  *,
  num_steps: int,
  until: int | None = None,
  log_every: int,
  max_nonfinite: int,
  context: RowContext,
  write: Callable[[int, dict[str, float]], None],
  actions: Sequence[Action] = (),
  stopping: Callable[[], bool] = lambda: False,
) -> tuple[types.TrainState, Progress]:
  """Runs the steps from `state.step` up to `until`, by default `num_steps`.

  num_steps: the last step of the run. A loop that makes its own batches calls
  this again and again with what it returned. `batches` are on the
  devices (`batches.iterate`). `write` gets means over each `log_every` steps;
  `actions` run in their order. A step's metrics are fetched after the next step
  is dispatched, so the device never waits for the host, unless an action is
  due. Returns early, all metrics fetched, once `stopping()`. FloatingPointError
  after `max_nonfinite` steps in a row whose loss or gradient was not finite.
  """

  def finish(progress: Progress, since, step, batch, metrics):
    """(progress with one more step, the time of its end)."""
    bad = float(metrics['nonfinite'][0]) > 0
    now = time.perf_counter()
    in_a_row = progress.in_a_row + 1 if bad else 0
    if in_a_row >= max_nonfinite:
      raise FloatingPointError(
        _not_finite(step, batch, metrics, in_a_row, context.where)
      )
    window = _add(progress.window, metrics, now - since, bad)
    if (step + 1) % log_every == 0 or step + 1 == num_steps:
      # Skipped steps do not advance the schedule.
      lr = float(context.schedule(step - progress.skipped))
      write(step + 1, {**_row(window, context.peak), 'lr': lr})
      window = EMPTY
    return Progress(progress.skipped + bad, in_a_row, window), now

  until = num_steps if until is None else until
  first = int(state.step)
  late = since = None
  steps = run_log.progress_bar(
    range(first, until),
    'training',
    num_steps,
    start=first,
    leave=until == num_steps,
  )
  for step in steps:
    batch = next(batches)
    since = since or time.perf_counter()
    state, metrics = train_step(state, frozen, batch)
    stop = stopping()
    if late:
      progress, since = finish(progress, since, *late)
    late, done = (step, batch, metrics), step + 1
    due = [a for a in actions if done % a.every == 0 or done == num_steps]
    if due or stop or done == until:
      progress, _ = finish(progress, since, *late)
      late, since = None, None
    for action in due:
      action.run(done, state, progress)
    if stop:
      break
  return state, progress


def _not_finite(step, batch, metrics, count, where) -> str:
  records = np.unique(_local_values(batch.example_record_RxE))
  places = [where(int(r)) for r in records[records >= 0]]
  more = f' and {len(places) - 10} more' if len(places) > 10 else ''
  part = "This process's part of its" if processes.many() else 'Its'
  means = metrics_lib.means(metrics_lib.add(None, metrics))
  values = ', '.join(
    f'{k} {value:.4g}' for k, value in means.items() if k not in COUNTS
  )
  return (
    f'Step {step + 1}: loss or gradient not finite, {count} steps in a row. '
    f'Its metrics: {values}. {part} batch holds {", ".join(places[:10])}{more}.'
    ' Lower the learning rate, or look at these records.'
  )


def _local_values(array: types.Array) -> np.ndarray:
  """The values that this process's devices hold, flattened."""
  if not isinstance(array, jax.Array):
    return np.ravel(array)
  return np.concatenate([np.ravel(x.data) for x in array.addressable_shards])


def _add(window: Window, metrics, seconds: float, bad: bool) -> Window:
  """The window with one more step; of a skipped step only its counts."""
  kept = {k: v for k, v in metrics.items() if not bad or k in COUNTS}
  sums = dict(window.metrics)
  for name, parts in metrics_lib.add(None, kept).items():
    before = sums.get(name, (0.0,) * len(parts))
    sums[name] = tuple(float(a + b) for a, b in zip(before, parts, strict=True))
  return Window(sums, window.seconds + seconds)


def _row(window: Window, peak: float) -> dict[str, float]:
  """Means of the metrics; rates of what the steps processed."""
  means = {k: parts for k, parts in window.metrics.items() if k not in COUNTS}
  sums = {k: parts[0] for k, parts in window.metrics.items()}
  skipped, steps = window.metrics['nonfinite']
  row = metrics_lib.means(means) | {'nonfinite': skipped / steps}
  for name, rate in RATES.items():
    if name in sums:
      row[rate] = sums[name] / window.seconds
  row['seconds_per_step'] = window.seconds / steps
  if 'flops' in sums:
    row['mfu'] = sums['flops'] / window.seconds / peak
  return row
