"""The loop: batches in, metrics out, one step ahead of the host."""

import pathlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import tqdm

from dpo_jax import types
from dpo_jax.training import metrics as metrics_lib
from dpo_jax.training import sharding


class Log(NamedTuple):
  """Where metrics go: `metrics.jsonl` in the run's directory, the terminal."""

  workdir: pathlib.Path

  def write(self, step: int, row: dict) -> None:
    row = {'step': step, **row}
    metrics_lib.append_jsonl(self.workdir / 'metrics.jsonl', row)
    tqdm.tqdm.write(metrics_lib.line(row))


def evaluate(
  eval_step: Callable[..., types.Metrics],
  state: types.TrainState,
  frozen: Any,
  batches: Iterable[types.Batch],
  mesh,
  *,
  num_batches: int,
) -> dict[str, float]:
  """Means over all examples of `num_batches` batches, under 'eval/'."""
  total = None
  for batch in tqdm.tqdm(batches, 'evaluating', num_batches, leave=False):
    batch = sharding.shard_rows(mesh, batch)
    out = eval_step(state.params, frozen, state.aux, batch, state.key)
    total = metrics_lib.add(total, out)
  return metrics_lib.means(total, prefix='eval/')


def fit(
  train_step: Callable[..., tuple[types.TrainState, types.Metrics]],
  state: types.TrainState,
  frozen: Any,
  batches: Iterator[types.Batch],
  mesh,
  log: Log,
  *,
  num_steps: int,
  log_every: int,
  max_nonfinite: int,
  schedule: Callable[[int], types.Array],
  where: Callable[[int], str],
) -> types.TrainState:
  """Runs `num_steps` steps; logs means over each `log_every` of them.

  A step's metrics are fetched after the next one is dispatched, so the device
  never waits for the host. FloatingPointError after `max_nonfinite` steps in a
  row whose loss or gradient was not finite; `where(record)` says where a record
  of their batch comes from.
  """
  window, nonfinite, skipped = _Window(), 0, 0
  late, late_began = None, 0.0

  def finish(step, batch, metrics, seconds):
    nonlocal window, nonfinite, skipped
    bad = float(metrics['nonfinite'][0]) > 0
    window.add(batch, metrics, seconds, bad)
    nonfinite = nonfinite + 1 if bad else 0
    skipped += bad
    if nonfinite >= max_nonfinite:
      raise FloatingPointError(_not_finite(step, batch, nonfinite, where))
    if (step + 1) % log_every == 0 or step + 1 == num_steps:
      # Skipped steps do not advance the schedule.
      lr = float(schedule(step - skipped + bad))
      log.write(step + 1, {**window.row(), 'lr': lr})
      window = _Window()

  for step in tqdm.trange(num_steps, desc='training'):
    batch = next(batches)
    began = time.perf_counter()
    state, metrics = train_step(state, frozen, sharding.shard_rows(mesh, batch))
    if late:
      finish(*late, seconds=began - late_began)
    late, late_began = (step, batch, metrics), began
  if late:
    jax.block_until_ready(state.step)
    finish(*late, seconds=time.perf_counter() - late_began)
  return state


def _not_finite(step, batch, count, where) -> str:
  records = np.unique(batch.example_record_RxE)
  places = [where(int(r)) for r in records[records >= 0]]
  more = f' and {len(places) - 10} more' if len(places) > 10 else ''
  return (
    f'Step {step}: loss or gradient not finite, {count} steps in a row. Its '
    f'batch holds {", ".join(places[:10])}{more}. Lower the learning rate, or '
    'look at these records.'
  )


class _Window:
  """Sums of the steps since the last line, and how long they took."""

  def __init__(self):
    self.total, self.seconds = None, 0.0
    self.tokens = self.examples = self.steps = self.nonfinite = 0
    self.unit = 'examples'

  def add(self, batch: types.Batch, metrics, seconds: float, bad: bool) -> None:
    """Adds a step; a skipped one counts, but its numbers don't."""
    if not bad:
      self.total = metrics_lib.add(self.total, metrics)
    self.seconds += seconds
    self.tokens += int((batch.layout.segment_RxL > 0).sum())
    self.examples += int((batch.example_weight_RxE > 0).sum())
    self.steps += 1
    self.nonfinite += bad
    arity = batch.example_slots_RxExK.shape[-1]
    self.unit = 'pairs' if arity == 2 else 'examples'

  def row(self) -> dict[str, float]:
    return {
      **metrics_lib.means(self.total or {}),
      'nonfinite': self.nonfinite / self.steps,
      'tokens_per_second': self.tokens / self.seconds,
      f'{self.unit}_per_second': self.examples / self.seconds,
      'seconds_per_step': self.seconds / self.steps,
    }
