"""Which examples are in which batch, and in which shape."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from dpo_jax.data import batches, order, plan
from dpo_jax.training import sharding
from tests import forests


def _examples(batch):
  """Sorted (record, tokens of each of the K completions)."""
  out = []
  for r, e in zip(*np.nonzero(batch.example_weight_RxE)):
    completions = []
    for slot in batch.example_slots_RxExK[r, e]:
      mine = batch.score_slot_RxN[r] == slot
      mine &= batch.score_weight_RxN[r] > 0
      completions.append(tuple(batch.score_token_RxN[r, mine].tolist()))
    out.append((int(batch.example_record_RxE[r, e]), *completions))
  return sorted(out)


def _all_examples(records):
  out = []
  for i in range(len(records)):
    skip = 0 if records.prompt_length(i) else 1
    completions = [tuple(c[skip:].tolist()) for c in records.completions(i)]
    for example in records.examples(i):
      out.append((i, *(completions[c] for c in example)))
  return sorted(out)


def _train(records, *, steps, batch_size, seed=0, rows=1, **options):
  return batches.train_batches(
    records, steps, rows, seed, batch_size=batch_size, **options
  )


@pytest.mark.parametrize('rows', [1, 4])
@pytest.mark.parametrize('limit', [None, 24])
def test_an_epoch_visits_every_example_once(rows, limit):
  records = forests.random_records(0, num=23)
  total = int(records.example_counts.sum())
  size = 4
  # Enough batches for `size` epochs to end on a boundary.
  packed = _train(
    records, steps=total, batch_size=size, rows=rows, max_tree_tokens=limit
  )
  seen = []
  for i in range(len(packed)):
    examples = _examples(packed[i])
    assert len(examples) == size
    seen += examples
  assert sorted(seen) == sorted(_all_examples(records) * size)


def test_epochs_differ_and_seeds_repeat():
  orders = [order.epoch_order(50, seed, e) for seed in (0, 1) for e in (0, 1)]
  for a, b in itertools.combinations(orders, 2):
    assert not np.array_equal(a, b)
  for o in orders:
    np.testing.assert_array_equal(np.sort(o), np.arange(50))
  np.testing.assert_array_equal(orders[0], order.epoch_order(50, 0, 0))
  np.testing.assert_array_equal(order.epoch_order(5, None, 3), np.arange(5))


def test_evaluation_sees_every_example_once_in_order():
  records = forests.random_records(1, num=11)
  (packed,) = batches.eval_batches(records, 2, batch_size=4)
  seen = [e for i in range(len(packed)) for e in _examples(packed[i])]
  assert sorted(seen) == _all_examples(records)
  assert [e[0] for e in seen] == sorted(e[0] for e in seen)


def test_shapes_are_few_and_every_batch_fits():
  records = forests.random_records(2, num=200)
  packed = _train(records, steps=60, batch_size=6, rows=2, max_shapes=3)
  shapes = {str(_shapes(packed[i])) for i in range(len(packed))}
  assert len(shapes) <= 3
  real = sum(int((packed[i].layout.segment_RxL > 0).sum()) for i in range(60))
  total = sum(packed[i].tokens_RxL.size for i in range(60))
  assert packed.real_fraction == pytest.approx(real / total)


def _shapes(batch):
  return {k: np.shape(v) for k, v in vars(batch).items() if k != 'layout'}


@pytest.mark.parametrize('max_shapes', [1, 2, 3, 9])
def test_chosen_lengths_pad_least(max_shapes):
  lengths = np.random.default_rng(0).integers(1, 9, 30)
  chosen = plan.choose_lengths(lengths, max_shapes)
  assert chosen[-1] == lengths.max() and len(chosen) <= max_shapes

  def padded(rungs):
    return sum(min(r for r in rungs if r >= n) for n in lengths)

  options = range(1, lengths.max() + 1)
  best = min(
    padded((*rungs, lengths.max()))
    for k in range(min(max_shapes, 8))
    for rungs in itertools.combinations(options, k)
  )
  assert padded(chosen) == best


MESH = sharding.make_mesh(devices=1)


def test_iteration_starts_anywhere():
  records = forests.random_records(3, num=20)
  packed = _train(records, steps=7, batch_size=4)
  whole = [b.tokens_RxL for b in batches.iterate(packed, MESH)]
  rest = [b.tokens_RxL for b in batches.iterate(packed, MESH, start=3)]
  assert len(whole) == 7 and len(rest) == 4
  for a, b in zip(whole[3:], rest):
    np.testing.assert_array_equal(a, b)


def test_no_records_is_an_error():
  with pytest.raises(ValueError, match='no records'):
    _train(forests.make([]), steps=1, batch_size=1)


def test_blocks_leave_the_fewest_scores():
  lengths = np.array([16, 20, 33, 60, 64, 90])
  candidates = range(16, 97, 16)

  def scores(ends):
    begins = (0, *ends[:-1])
    return sum(
      int((lengths > b).sum()) * (e - b) * e for b, e in zip(begins, ends)
    )

  options = [
    (*some, 96)
    for k in range(plan.MAX_BLOCKS)
    for some in itertools.combinations(list(candidates)[:-1], k)
  ]
  chosen = plan.choose_blocks(lengths)
  assert scores(chosen) == min(map(scores, options))
  assert len(plan.choose_blocks(np.array([40_000, 7]))) <= plan.MAX_BLOCKS


def test_evaluation_takes_the_first_examples():
  records = forests.random_records(1, num=11)
  (packed,) = batches.eval_batches(records, 2, batch_size=4, num_examples=9)
  seen = [e for i in range(len(packed)) for e in _examples(packed[i])]
  (whole,) = batches.eval_batches(records, 2, batch_size=9)
  assert sorted(seen) == _examples(whole[0])


def test_records_beside_others_have_the_same_shapes():
  """And as many completions in a batch, whatever they are compared with."""
  pairs = forests.random_records(1, num=11)
  others = forests.random_records(2, num=30, arity=1)
  packed = batches.eval_batches(pairs, 2, [others], batch_size=4)
  shapes = set()
  for part in packed:
    for i in range(len(part)):
      scored = part[i].replace(example_slots_RxExK=None)
      scored = scored.replace(example_weight_RxE=None, example_record_RxE=None)
      shapes.add(str(_shapes(scored)))
  assert len(shapes) == 1
  assert packed[1][0].example_weight_RxE.sum() == 8
  seen = [e for i in range(len(packed[1])) for e in _examples(packed[1][i])]
  assert sorted(seen) == _all_examples(others)


def test_extras_lie_beside_their_tokens():
  records = forests.random_records(4, num=9, min_prompt=0)
  place = np.arange(len(records.tokens))
  extras = {'place': place, 'token': records.tokens.astype(np.float32)}
  plain = _train(records, steps=3, batch_size=4, rows=2)
  packed = plain.of(dataclasses.replace(records, extras=extras))
  for i in range(len(packed)):
    batch = packed[i]
    real = batch.score_weight_RxN > 0
    found = batch.extras_RxN
    assert found['place'].dtype == place.dtype
    np.testing.assert_array_equal(
      records.tokens[found['place'][real]], batch.score_token_RxN[real]
    )
    np.testing.assert_array_equal(found['token'], batch.score_token_RxN)
    np.testing.assert_array_equal(batch.tokens_RxL, plain[i].tokens_RxL)


def test_a_process_makes_its_rows_alone():
  records = forests.random_records(4, num=12)
  packed = forests.pack(records, num_batches=3, rows=4, seed=0, batch_size=6)
  parts = [packed.of_rows(rows) for rows in ([0, 3], [1, 2])]
  for whole, *some in zip(packed, *parts):
    joined = jax.tree.map(lambda *x: np.concatenate(x), *some)
    expected = jax.tree.map(lambda x: x[[0, 3, 1, 2]], whole)
    jax.tree.map(np.testing.assert_array_equal, joined, expected)
