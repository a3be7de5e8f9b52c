"""The order in which examples are visited."""

import itertools

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from dpo_jax.data import order, store
from dpo_jax.data import records as records_lib
from tests import forests


def labelled(groups):
  """Records of one-token completions, an example each, with these labels."""
  builder = store.Builder()
  for i, labels in enumerate(groups):
    n = len(labels)
    record = records_lib.Record(
      prompt='',
      completions=('',) * n,
      examples=tuple((c,) for c in range(n)),
      labels=None if None in labels else tuple(labels),
      row=i + 1,
    )
    builder.add(record, [i], [[1]] * n)
  return builder.finish()


def visited(records, *, seed, epoch=0):
  """Labels of all examples of an epoch, and their records."""
  stream = order.ExampleStream(records, seed=seed)
  begin = epoch * stream.per_epoch
  found = stream.slice(begin, begin + stream.per_epoch)
  labels = [
    records.labels_of(i)[c] for i, examples in found for (c,) in examples
  ]
  return np.array(labels), [i for i, _ in found]


@hypothesis.given(
  labels=st.lists(st.booleans(), min_size=1, max_size=60),
  seed=st.integers(0, 2**40),
  epoch=st.integers(0, 3),
)
@hypothesis.settings(max_examples=60, deadline=None)
def test_any_run_of_examples_has_its_share_of_each_class(labels, seed, epoch):
  records = labelled([[x] for x in labels])
  found, places = visited(records, seed=seed, epoch=epoch)
  assert sorted(places) == list(range(len(labels)))
  share = sum(labels) / len(labels)
  total = np.concatenate([[0], np.cumsum(found)])
  runs = np.subtract.outer(total, total)
  lengths = np.subtract.outer(*[np.arange(len(total))] * 2)
  # 2 was asked for; 1 is what even spreading of two classes gives.
  assert np.abs(runs - share * lengths).max() <= 1 + 1e-9


def test_records_with_both_labels_are_a_class_of_their_own():
  groups = [[True]] * 30 + [[False]] * 60 + [[True, False]] * 30
  records = labelled(groups)
  _, places = visited(records, seed=5)
  assert sorted(places) == list(range(120))
  kind = np.repeat([0, 1, 2], [30, 60, 30])[places]
  for which, share in ((0, 1 / 4), (1, 1 / 2), (2, 1 / 4)):
    counts = np.concatenate([[0], np.cumsum(kind == which)])
    for length in (1, 7, 20, 64):
      runs = counts[length:] - counts[:-length]
      assert np.abs(runs - share * length).max() <= 2


def test_each_class_is_shuffled():
  records = labelled([[i % 3 == 0] for i in range(300)])
  orders = [
    tuple(visited(records, seed=seed, epoch=epoch)[1])
    for seed in (0, 1)
    for epoch in (0, 1)
  ]
  assert len(set(orders)) == 4
  for found in orders:
    for rest in (0, 1):
      own = [i for i in found if (i % 3 == 0) == rest]
      # Neighbours in the file are rarely neighbours now.
      assert sum(abs(a - b) <= 3 for a, b in itertools.pairwise(own)) < 15
  assert visited(records, seed=0)[1] == list(orders[0])


@pytest.mark.parametrize('label', [None, True])
def test_records_of_one_class_keep_the_plain_order(label):
  records = labelled([[label]] * 41)
  for epoch in range(3):
    _, places = visited(records, seed=7, epoch=epoch)
    assert places == order.epoch_order(41, 7, epoch).tolist()


def test_the_orders_are_pinned():
  """They decide what a resumed run sees: no version may change them."""
  records = forests.random_records(0, num=8)
  stream = order.ExampleStream(records, seed=3)
  plain = [i for i, _ in stream.slice(0, stream.per_epoch)]
  assert plain == order.epoch_order(8, 3, 0).tolist()
  assert plain == PLAIN
  mixed = labelled([[i % 4 == 1] for i in range(12)])
  assert visited(mixed, seed=3, epoch=2)[1] == MIXED


PLAIN = [6, 1, 5, 2, 7, 4, 3, 0]
MIXED = [11, 1, 8, 2, 4, 5, 10, 3, 6, 9, 0, 7]


def test_without_a_seed_records_keep_their_own_order():
  records = labelled([[True]] * 5 + [[False]] * 5)
  assert visited(records, seed=None)[1] == list(range(10))


@hypothesis.given(st.lists(st.integers(0, 3), min_size=1, max_size=30))
def test_evenly(classes):
  classes = np.array(classes)
  places = order.evenly(classes)
  assert sorted(places) == list(range(len(classes)))
  keys = []
  for p in places:
    before = int((classes[:p] == classes[p]).sum())
    size = int((classes == classes[p]).sum())
    keys.append(((before + 0.5) / size, classes[p]))
  assert keys == sorted(keys)
