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
) -> dict[str, float]:
  """Means over all examples of `batches`, under 'eval/'."""
  total = None
  for batch in tqdm.tqdm(batches, 'evaluating', leave=False):
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
) -> types.TrainState:
  """Runs `num_steps` steps; logs means over each `log_every` of them.

  A step's metrics are fetched after the next one is dispatched, so the device
  never waits for the host. FloatingPointError after `max_nonfinite` steps in a
  row whose loss or gradient was not finite.
  """
  window, nonfinite = _Window(), 0
  late, late_began = None, 0.0

  def finish(step, batch, metrics, seconds):
    nonlocal window, nonfinite
    window.add(batch, metrics, seconds)
    skipped = float(metrics['nonfinite'][0]) > 0
    nonfinite = nonfinite + 1 if skipped else 0
    if nonfinite and nonfinite >= max_nonfinite:
      records = np.unique(batch.example_record_RxE)
      raise FloatingPointError(
        f'Step {step}: loss or gradient not finite for {nonfinite} steps in a '
        f'row. Records of this batch: {records[records >= 0].tolist()}. Lower '
        'the learning rate, or look at these records.'
      )
    if (step + 1) % log_every == 0 or step + 1 == num_steps:
      log.write(step + 1, {**window.row(), 'lr': float(schedule(step))})
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


class _Window:
  """Sums of the steps since the last line, and how long they took."""

  def __init__(self):
    self.total, self.seconds = None, 0.0
    self.tokens = self.examples = self.steps = 0

  def add(self, batch: types.Batch, metrics: types.Metrics, seconds) -> None:
    self.total = metrics_lib.add(self.total, metrics)
    self.seconds += seconds
    self.tokens += int((batch.layout.segment_RxL > 0).sum())
    self.examples += int((batch.example_weight_RxE > 0).sum())
    self.steps += 1

  def row(self) -> dict[str, float]:
    return {
      **metrics_lib.means(self.total),
      'tokens_per_second': self.tokens / self.seconds,
      'examples_per_second': self.examples / self.seconds,
      'seconds_per_step': self.seconds / self.steps,
    }
