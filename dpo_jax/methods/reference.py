"""Reference log-probabilities as data: scored once, kept on disk.

The cache has one file for each combination of weights, records and settings:
the log-probability of every token of the training records, NaN where it was not
scored. A pass writes its results at intervals, under a name that depends on its
batches, so that after a kill it resumes with the same numbers. Each process
scores its rows; process 0 reads and writes the files.

Held-out batches are scored anew at each start, so that policy and reference can
be compared to the last bit: see `score_batches`.
"""

import dataclasses
import hashlib
import json
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy
from absl import logging

from dpo_jax import assets, types
from dpo_jax.data import batches, order, row_sharding, store
from dpo_jax.training import processes, run_log

# Of the file format and the meaning of its numbers: increment on any change.
VERSION = 1
# Between two writes of an unfinished pass.
SAVE_SECONDS = 120


def singles(
  records: store.TokenRecords,
  *,
  num_examples: int | None = None,
  seed: int | None = None,
) -> store.TokenRecords:
  """The same records, with each compared completion as an example by itself.

  num_examples: None for all examples; else only completions of the first
  num_examples that a run with this seed visits.
  """
  if num_examples is None:
    num_examples = int(records.example_counts.sum())
  stream = order.ExampleStream(records, seed=seed)
  num_examples = min(num_examples, stream.per_epoch)
  visited = [[] for _ in range(len(records))]
  for record, examples in stream.slice(0, num_examples):
    visited[record] += examples
  used = [np.unique(examples) for examples in visited]
  counts = [len(completions) for completions in used]
  return dataclasses.replace(
    records,
    examples_ExK=np.concatenate(used).astype(np.int32)[:, None],
    first_example=np.concatenate([[0], np.cumsum(counts)]),
  )


def attach(
  records: store.TokenRecords,
  packed: batches.PackedBatches,
  score: Callable[[types.Batch], types.Array],
  mesh: jax.sharding.Mesh,
  *,
  weights: str,
  settings: Mapping[str, Any],
) -> store.TokenRecords:
  """`records` with extras['reference'], f32[tokens] in nats, 0 if not scored.

  packed: batches of `singles(records)`. score: a batch on the mesh -> the
  reference's log-probabilities, f32[R, N]. weights: `fingerprints.of_params`
  of the reference. settings: all else that the numbers depend on, as JSON
  values.
  """
  wanted = _scored_tokens(packed.placement.records)
  key = _digest(
    {
      'version': VERSION,
      'weights': weights,
      'records': records.fingerprint(),
      'settings': dict(settings),
    }
  )
  path = assets.cache_dir('reference') / f'{key}.safetensors'
  logps = _shared(path, len(records.tokens))
  if np.isnan(logps[wanted]).any():
    shapes = [shape._asdict() for shape in packed.shapes]
    places = hashlib.sha256(wanted.tobytes()).hexdigest()
    plan = _digest([packed.placement.rows, shapes, places])
    part = path.with_name(f'{key[:32]}-{plan[:32]}.part')
    found = _pass(packed, score, mesh, part)
    logps = np.where(np.isnan(logps), found, logps)
    scored = np.where(wanted, logps, 0.0)
    _check_finite(records, scored, lambda token: _record_of(records, token))
    if processes.first():
      _write(path, logps=logps)
      part.unlink(missing_ok=True)
  else:
    logging.info('Reference log-probabilities from the cache, %s.', path)
  extras = {**records.extras, 'reference': np.nan_to_num(logps, nan=0.0)}
  return dataclasses.replace(records, extras=extras)


def score_batches(
  packed: batches.PackedBatches,
  score: Callable[[types.Batch], types.Array],
  mesh: jax.sharding.Mesh,
) -> batches.PackedBatches:
  """`packed` with extras['reference'], f32[R, N] of each batch in nats.

  score: as for `attach`; the program that scores the policy
  in an evaluation. Equal parameters then give equal bits, so that their
  log-ratios are 0. Another packing, device or compiler would round otherwise,
  so there is no cache; the cost is that of one evaluation.
  """
  found = []
  made = batches.iterate(packed, mesh)
  for batch in run_log.progress_bar(
    made, 'reference, held out', len(packed), leave=False
  ):
    logps = row_sharding.to_host(score(batch))
    slot, record, weight = map(
      row_sharding.to_host,
      (batch.score_slot_RxN, batch.slot_record_RxS, batch.score_weight_RxN),
    )
    record = np.take_along_axis(record, slot, 1)[weight > 0]
    _check_finite(
      packed.placement.records, logps[weight > 0], record.__getitem__
    )
    found.append(logps)
  return packed.with_extras(reference=found)


def _pass(packed, score, mesh, part: pathlib.Path) -> np.ndarray:
  """f32[tokens], NaN where no batch scores the token."""
  records = packed.placement.records
  place = np.arange(len(records.tokens), dtype=np.int32)
  packed = packed.of(dataclasses.replace(records, extras={'place': place}))
  logps = _shared(part, len(place))
  first = _batches_done(packed, logps)
  written = time.monotonic()
  made = batches.iterate(packed, mesh, start=first)
  made = run_log.progress_bar(made, 'reference', len(packed), start=first)
  for i, batch in enumerate(made, first):
    found = row_sharding.to_host(score(batch.replace(extras_RxN={})))
    place = row_sharding.to_host(batch.extras_RxN['place'])
    real = row_sharding.to_host(batch.score_weight_RxN) > 0
    logps[place[real]] = found[real]
    late = time.monotonic() - written > SAVE_SECONDS and i + 1 < len(packed)
    if late and processes.first():
      _write(part, logps=logps)
      written = time.monotonic()
  return logps


def _batches_done(packed, logps: np.ndarray) -> int:
  """The number of leading batches whose tokens are all scored."""
  if np.isnan(logps).all():
    return 0
  for i in range(len(packed)):
    batch = packed[i]
    real = batch.score_weight_RxN > 0
    if np.isnan(logps[batch.extras_RxN['place'][real]]).any():
      return i
  return len(packed)


def _scored_tokens(records: store.TokenRecords) -> np.ndarray:
  """bool[tokens]: the scored tokens of all compared completions."""
  wanted = np.zeros(len(records.tokens), bool)
  for i in range(len(records)):
    spans = records.completion_spans(i)
    for c in np.unique(records.examples(i)):
      wanted[spans[c].start + records.scored_places(i, c)] = True
  return wanted


def _record_of(records: store.TokenRecords, token: int) -> int:
  """The record that contains a token."""
  first_token = records.offsets[records.first_span]
  return int(np.searchsorted(first_token, token, side='right')) - 1


def _check_finite(
  records: store.TokenRecords,
  logps: np.ndarray,
  record_of: Callable[[int], int],
) -> None:
  """ValueError that names the record, where one of `logps` is not finite.

  record_of: an index into `logps` -> its record.
  """
  bad = np.flatnonzero(~np.isfinite(logps))
  if bad.size:
    where = records.where(int(record_of(bad[0])))
    raise ValueError(
      f'{where}: the reference gives a log-probability of {logps[bad[0]]}, and '
      f'{bad.size - 1} more that are not finite. Its weights are damaged, or '
      'its compute dtype overflows.'
    )


def _digest(content: Any) -> str:
  return hashlib.sha256(
    json.dumps(content, sort_keys=True).encode()
  ).hexdigest()


def _shared(path: pathlib.Path, size: int) -> np.ndarray:
  """Collective; the array that process 0 reads, in every process."""
  first = processes.first()
  return processes.share(_read(path, 'logps', size) if first else None)


def _write(path: pathlib.Path, **arrays: np.ndarray) -> None:
  checksums = {
    name: hashlib.sha256(array.tobytes()).hexdigest()
    for name, array in arrays.items()
  }
  with assets.atomic_path(path) as temp:
    safetensors.numpy.save_file(arrays, temp, checksums)


def _read(path: pathlib.Path, name: str, size: int) -> np.ndarray:
  """An array that `_write` wrote; all NaN if the file is absent or damaged."""
  nothing = np.full(size, np.nan, np.float32)
  if not path.exists():
    return nothing
  try:
    with safetensors.safe_open(path, 'np') as f:
      array, expected = f.get_tensor(name), f.metadata()[name]
  except (safetensors.SafetensorError, KeyError, OSError) as error:
    logging.warning('%s is damaged and made again: %s', path, error)
    return nothing
  given = hashlib.sha256(array.tobytes()).hexdigest()
  if given != expected or array.shape != (size,):
    logging.warning('%s is damaged and made again: wrong checksum', path)
    return nothing
  return array
