"""The loop: its rows, steps that are not finite, going on at any step."""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax import types
from dpo_jax.training import loop
from tests import forests

CONTEXT = loop.RowContext(
  schedule=lambda update: 0.5**update,
  peak=1.0,
  where=lambda record: f'pairs.jsonl:{record + 1}',
)
NONE = loop.Progress()
TIMING = {'tokens_per_second', 'pairs_per_second', 'seconds_per_step', 'mfu'}


def test_progress_survives_json_bit_for_bit():
  window = loop.Window(
    metrics={
      'loss': (0.1 + 0.2, 3.0),
      'm': (math.nan, math.inf, 1 / 3),
      'flops': (1e15 / 3, 4.0),
    },
    seconds=1e-17,
  )
  progress = loop.Progress(skipped=2, in_a_row=1, window=window)
  text = json.dumps(progress.to_json())
  again = loop.Progress.from_json(json.loads(text))
  assert json.dumps(again.to_json()) == text
  assert again._replace(window=None) == progress._replace(window=None)
  for a, b in zip(window.metrics.values(), again.window.metrics.values()):
    np.testing.assert_array_equal(a, b)
  assert isinstance(again.window.metrics['m'], tuple)


def test_a_window_of_an_older_version_is_left_out():
  window = dict(metrics={}, seconds=1.0, tokens=5, examples=2, steps=4)
  saved = dict(skipped=2, in_a_row=1, window=window)
  assert loop.Progress.from_json(saved) == loop.Progress(2, 1, loop.EMPTY)


@pytest.fixture(scope='module')
def packed():
  return forests.pack(
    forests.random_records(0, num=30),
    num_batches=12,
    rows=1,
    seed=0,
    batch_size=4,
  )


def _train_step(bad):
  """Step i has loss i; the steps in `bad` are not finite."""

  def train_step(state, frozen, batch):
    step = int(state.step)
    metrics = {
      'loss': (float('nan') if step in bad else 2.0 * step, 2),
      'nonfinite': (int(step in bad), 1),
      'tokens': (100, 1),
      'pairs': (4, 1),
      'flops': (10.0, 1),
    }
    return state.replace(step=state.step + 1), metrics

  return train_step


def _state(step):
  return types.TrainState(
    step=jnp.int32(step), params=None, opt_state=None, aux=None, key=None
  )


def _fit(packed, bad, *, progress=NONE, first=0, stop=None):
  """(rows, progress after every step) of 12 steps; step i has loss i.

  bad: steps, from 0 on, that are not finite. stop: after this many.
  """
  rows, after = [], {}

  state, last = loop.fit(
    _train_step(bad),
    _state(first),
    None,
    (packed[i] for i in range(first, 12)),
    progress,
    num_steps=12,
    log_every=4,
    max_nonfinite=3,
    context=CONTEXT,
    write=lambda step, row: rows.append({'step': step, **row}),
    actions=[loop.Action(1, lambda n, state, now: after.update({n: now}))],
    stopping=lambda: len(after) + 1 == stop,
  )
  assert after[int(state.step)] == last
  return rows, after


def _timeless(rows):
  return [{k: v for k, v in r.items() if k not in TIMING} for r in rows]


def test_skipped_steps_are_counted_and_left_out(packed):
  rows, after = _fit(packed, bad={3, 4, 9})
  assert _timeless(rows) == [
    {'step': 4, 'loss': (0 + 1 + 2) / 3, 'nonfinite': 0.25, 'lr': 0.5**3},
    {'step': 8, 'loss': (5 + 6 + 7) / 3, 'nonfinite': 0.25, 'lr': 0.5**5},
    {'step': 12, 'loss': (8 + 10 + 11) / 3, 'nonfinite': 0.25, 'lr': 0.5**8},
  ]
  assert [after[n].in_a_row for n in (3, 4, 5, 6)] == [0, 1, 2, 0]
  assert after[12].skipped == 3
  # What was processed counts, skipped or not: 100 tokens, 4 pairs, 10 FLOPs.
  for row in rows:
    assert row['tokens_per_second'] == pytest.approx(
      100 / row['seconds_per_step']
    )
    assert row['pairs_per_second'] == pytest.approx(4 / row['seconds_per_step'])
    assert row['mfu'] == pytest.approx(10 / row['seconds_per_step'])


def test_a_limit_of_skipped_steps_in_a_row_stops_the_run(packed):
  with pytest.raises(FloatingPointError) as error:
    _fit(packed, bad={1, 2, 4, 5, 6})
  text = str(error.value)
  # The seventh step, as metrics.jsonl counts them.
  assert text.startswith(
    'Step 7: loss or gradient not finite, 3 steps in a row'
  )
  assert 'loss nan' in text
  batch = packed[6]
  for record in set(batch.example_record_RxE.ravel().tolist()) - {-1}:
    assert f'pairs.jsonl:{record + 1}' in text


@pytest.mark.parametrize('stop', range(1, 12))
def test_a_run_goes_on_at_any_step(stop, packed):
  bad = {2, 4, 5, 9}
  whole, _ = _fit(packed, bad)
  rows, after = _fit(packed, bad, stop=stop)
  assert max(after) == stop
  saved = json.loads(json.dumps(after[stop].to_json()))
  progress = loop.Progress.from_json(saved)
  assert progress == after[stop]
  rest, after = _fit(packed, bad, first=stop, progress=progress)
  assert _timeless(rows + rest) == _timeless(whole)
  assert after[12].skipped == 4


def test_the_limit_counts_steps_before_a_stop(packed):
  _, after = _fit(packed, bad={4, 5, 6}, stop=6)
  assert after[6].in_a_row == 2
  with pytest.raises(FloatingPointError, match='Step 7'):
    _fit(packed, bad={4, 5, 6}, first=6, progress=after[6])


@pytest.mark.parametrize('ends', [(12,), (3, 4, 12), (1, 8, 11, 12)])
def test_a_loop_that_makes_its_own_batches_calls_fit_again(ends, packed):
  """As online methods do: steps, rows and actions are those of one call."""
  bad = {2, 4, 5, 9}
  whole, _ = _fit(packed, bad)
  rows, after, state, progress = [], [], _state(0), NONE
  for end in ends:
    first = int(state.step)
    made = iter([packed[i] for i in range(first, end)])
    state, progress = loop.fit(
      _train_step(bad),
      state,
      None,
      made,
      progress,
      num_steps=12,
      until=end,
      log_every=4,
      max_nonfinite=3,
      context=CONTEXT,
      write=lambda step, row: rows.append({'step': step, **row}),
      actions=[loop.Action(5, lambda step, *_: after.append(step))],
    )
    assert int(state.step) == end and next(made, None) is None
  assert _timeless(rows) == _timeless(whole)
  assert after == [5, 10, 12] and progress.skipped == 4
