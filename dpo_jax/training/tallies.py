"""What a step's batch holds, in the rows of all processes."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from dpo_jax import types
from dpo_jax.training import processes, sharding

# FLOPs are summed as integers of so many digits of so many bits: exactly, on
# devices that have no floats that could.
_DIGITS, _BITS = 6, 16


class Tally(NamedTuple):
  """Real tokens, examples and model FLOPs; whether a process is to stop."""

  tokens: int
  examples: int
  flops: float
  stopping: bool


def make_count(
  mesh: jax.sharding.Mesh, flops: Callable[[types.Batch], float]
) -> Callable[[types.Batch, bool], Callable[[], Tally]]:
  """count(this process's rows, stopping) -> a function that gives the tally.

  flops: rows -> model FLOPs. The devices sum over the processes, behind the
  step that they are at; the tally waits for them.
  """
  if not processes.many():
    return lambda batch, stopping: lambda: _alone(batch, flops, stopping)
  everywhere = NamedSharding(mesh, PartitionSpec(mesh.axis_names))

  @jax.jit(out_shardings=sharding.replicated(mesh))
  def add(rows_RxC, stopping):
    return jnp.append(rows_RxC.sum(0), stopping.sum())

  def count(batch, stopping):
    rows = sharding.shard_rows(mesh, _by_row(batch, flops))
    asked = jax.make_array_from_callback(
      (mesh.size,), everywhere, lambda _: np.full(1, stopping, np.int32)
    )
    found = add(rows, asked)
    return lambda: _read(np.asarray(found))

  return count


def _alone(batch: types.Batch, flops, stopping: bool) -> Tally:
  tokens, examples = (int(counts.sum()) for counts in _counts(batch))
  return Tally(tokens, examples, flops(batch), stopping)


def _counts(batch: types.Batch) -> tuple[np.ndarray, np.ndarray]:
  """Tokens and examples of each row."""
  tokens_R = (batch.layout.segment_RxL > 0).sum(1)
  return tokens_R, (batch.example_weight_RxE > 0).sum(1)


def _by_row(batch: types.Batch, flops) -> np.ndarray:
  """i32[R, C]: tokens, examples, and the digits of the FLOPs."""
  out = []
  for row, counts in enumerate(zip(*_counts(batch))):
    number = round(flops(_row(batch, row)))
    digits = (number >> _BITS * i & (1 << _BITS) - 1 for i in range(_DIGITS))
    out.append([*counts, *digits])
  return np.array(out, np.int32)


def _row(batch: types.Batch, row: int) -> types.Batch:
  return jax.tree.map(lambda x: x[row : row + 1], batch)


def _read(sums: np.ndarray) -> Tally:
  tokens, examples, *digits, asked = sums.tolist()
  flops = sum(digit << _BITS * i for i, digit in enumerate(digits))
  return Tally(tokens, examples, float(flops), asked > 0)
