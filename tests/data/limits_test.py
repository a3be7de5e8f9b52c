"""Shapes planned from bounds hold every batch of records within them."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_jax.data import plan, preview
from tests import forests


def ids(rng, low, high):
  return rng.integers(0, forests.VOCAB, rng.integers(low, high + 1)).tolist()


def random_records(rng, limits, *, at_maxima, arity=2):
  """Records within the bounds, or all of them as large as the bounds."""
  rows = []
  count = limits.records if at_maxima else rng.integers(1, limits.records + 1)
  for _ in range(count):
    least = limits.completions if at_maxima else arity
    branches = int(rng.integers(least, limits.completions + 1))
    least = (limits.max_prompt_length, limits.max_completion_length)
    prompt, answer = least if at_maxima else (0, 2)
    examples = [*itertools.permutations(range(branches), arity)]
    # Each completion is in an example.
    used = [e for i, e in enumerate(examples) if i % (branches - 1) == 0]
    rows.append(
      (
        ids(rng, prompt, limits.max_prompt_length),
        [
          ids(rng, answer, limits.max_completion_length)
          for _ in range(branches)
        ],
        used[: limits.examples],
      )
    )
  return forests.make(rows)


@given(
  seed=st.integers(0, 10_000),
  rows=st.sampled_from([1, 2, 4]),
  num=st.integers(1, 9),
  completions=st.integers(2, 4),
  share=st.booleans(),
  at_maxima=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_records_within_bounds_have_one_shape(
  seed, rows, num, completions, share, at_maxima
):
  limits = plan.Limits(
    rows=rows,
    records=num,
    completions=completions,
    examples=completions,
    max_prompt_length=23,
    max_completion_length=17,
    share_prompt=share,
  )
  rng = np.random.default_rng(seed)
  records = random_records(rng, limits, at_maxima=at_maxima)
  batch, shape = limits.pack(records), limits.shape()

  assert batch.tokens_RxL.shape == (rows, shape.length)
  assert batch.score_index_RxN.shape == (rows, shape.scored)
  assert batch.slot_last_RxS.shape == (rows, shape.slots)
  assert batch.example_slots_RxExK.shape == (rows, shape.examples, 2)
  assert batch.layout.profile == shape.profile
  lengths = np.asarray(batch.layout.tree_length_RxT)
  begins = [0, *(end for end, _ in shape.profile[:-1])]
  for begin, (_, trees) in zip(begins, shape.profile):
    assert ((lengths > begin).sum(axis=1) <= trees).all()
  assert lengths.max() <= shape.profile[-1][0]

  found = []
  for r in range(rows):
    row = jax.tree.map(lambda x, r=r: np.asarray(x[r]), batch)
    for slot in np.flatnonzero(row.slot_record_RxS >= 0):
      held = preview.completion(row, slot)
      assert not held.faults
      assert held.prompt.tolist() == records.prompt(held.record).tolist()
      assert held.scored.sum() == len(held.tokens) - (not len(held.prompt))
      found.append((held.record, held.tokens.tolist()))
  wanted = [
    (i, records.completions(i)[c].tolist())
    for i in range(len(records))
    for c in sorted(set(records.examples(i).ravel().tolist()))
  ]
  assert sorted(found) == sorted(wanted)
  examples = int(records.example_counts.sum())
  assert (batch.example_weight_RxE == 1).sum() == examples
  if at_maxima and num % rows == 0 and len(wanted) == num * completions:
    assert (batch.score_weight_RxN == 1).all()


LIMITS = plan.Limits(
  rows=2,
  records=4,
  completions=2,
  max_prompt_length=5,
  max_completion_length=4,
)
PAIR = ([1] * 5, [[2] * 4, [3] * 4], [(0, 1)])


@pytest.mark.parametrize(
  ('beyond', 'message'),
  [
    (([1] * 6, *PAIR[1:]), r'forest:2 is beyond max_prompt_length=5: it has 6'),
    (([1], [[2] * 5, [3]], [(0, 1)]), 'beyond max_completion_length=4.* 5'),
    (([1], [[2], [3], [4]], [(0, 1)]), 'forest:2 is beyond completions=2.* 3'),
    (([1], [[2], [3]], [(0, 1), (1, 0)]), 'forest:2 is beyond examples=1.* 2'),
  ],
)
def test_a_record_beyond_a_bound_is_named(beyond, message):
  LIMITS.pack(forests.make([PAIR, PAIR]))
  with pytest.raises(ValueError, match=message):
    LIMITS.pack(forests.make([PAIR, beyond]))


def test_short_records_beside_a_long_one_fit():
  """The shortest row must not take more records than its share."""
  short = ([1], [[2], [3]], [(0, 1)])
  batch = LIMITS.pack(forests.make([PAIR, short, short, short]))
  assert ((batch.slot_record_RxS >= 0).sum(axis=1) == 4).all()


def test_too_many_records_are_an_error():
  LIMITS.pack(forests.make([PAIR] * 4))
  with pytest.raises(ValueError, match=r'5 records; .* records=4'):
    LIMITS.pack(forests.make([PAIR] * 5))


@pytest.mark.parametrize('name', ['rows', 'records', 'max_prompt_length'])
def test_bounds_are_positive(name):
  with pytest.raises(ValueError, match=f'{name} is 0'):
    dataclasses.replace(LIMITS, **{name: 0})
