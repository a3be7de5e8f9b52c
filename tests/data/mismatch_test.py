"""Mismatched completions: whose they are, and what is left of them."""

import collections
import itertools
import re

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from dpo_jax import types
from dpo_jax.data import mismatch, store
from dpo_jax.data import records as records_lib

EOS = 1


def build(groups):
  """Records from (prompt, completions) of token ids, an example each."""
  builder = store.Builder()
  for i, (prompt, completions) in enumerate(groups):
    n = len(completions)
    record = records_lib.Record(
      prompt='',
      completions=('',) * n,
      examples=tuple((c,) for c in reversed(range(n))),
      labels=tuple((i + c) % 2 == 0 for c in range(n)),
      file='f',
      row=i + 1,
    )
    builder.add(record, list(prompt), [list(c) for c in completions])
  return builder.finish()


def examples_of(records):
  """(record, own, mismatched) of each example, as tuples of token ids."""
  out = []
  for i in range(len(records)):
    completions = [tuple(c.tolist()) for c in records.completions(i)]
    for own, other in records.examples(i):
      out.append((i, completions[own], completions[other]))
  return out


def prompt_of(records, i):
  return tuple(records.prompt(i).tolist())


ids = st.lists(st.integers(2, 3), min_size=1, max_size=3)
group = st.tuples(
  st.lists(st.integers(7, 8), min_size=1, max_size=2),
  st.lists(ids.map(lambda x: [*x, EOS]), min_size=1, max_size=3),
)


@hypothesis.given(
  groups=st.lists(group, min_size=2, max_size=7),
  seed=st.integers(0, 2**32),
  max_length=st.sampled_from([4, 5, 6, 7]),
)
@hypothesis.settings(max_examples=400, deadline=None)
def test_against_all_choices(groups, seed, max_length):
  # Own completions are cut already, as tokenisation leaves them.
  groups = [
    (prompt, [c[: max_length - len(prompt)] for c in completions])
    for prompt, completions in groups
  ]
  before = build(groups)
  after = mismatch.attach(before, seed=seed, max_length=max_length)
  assert after.arity == 2 and len(after) == len(before)
  for i, (prompt, completions) in enumerate(groups):
    n = len(completions)
    assert prompt_of(after, i) == tuple(prompt)
    assert [c.tolist() for c in after.completions(i)[:n]] == completions
    np.testing.assert_array_equal(after.labels_of(i)[:n], before.labels_of(i))
    assert len(after.completions(i)) == 2 * n
    assert (after.labels_of(i)[n:] == types.NO_LABEL).all()
    expected = [[c, n + j] for j, (c,) in enumerate(before.examples(i))]
    assert after.examples(i).tolist() == expected
    assert after.where(i) == before.where(i)
  owners = [
    (i, tuple(before.completions(i)[c].tolist()))
    for i in range(len(before))
    for (c,) in before.examples(i)
  ]
  most = max(
    collections.Counter(prompt_of(before, i) for i, _ in owners).values()
  )
  for i, own, mismatched in examples_of(after):
    room = max_length - before.prompt_length(i)
    choices = [(j, c[:room]) for j, c in owners if j != i]
    sources = [j for j, c in choices if c == mismatched]
    assert sources
    assert mismatched != own or {c for _, c in choices} == {own}
    other_prompt = [
      c for j, c in choices if prompt_of(before, j) != prompt_of(before, i)
    ]
    if 2 * most <= len(owners) and set(other_prompt) - {own}:
      assert mismatched in other_prompt


@hypothesis.given(
  sizes=st.lists(
    st.tuples(st.integers(0, 3), st.integers(1, 3)), min_size=2, max_size=12
  ),
  seed=st.integers(0, 2**32),
)
@hypothesis.settings(max_examples=200, deadline=None)
def test_distinct_answers_are_deranged(sizes, seed):
  """Each answer serves once, and as many as can be are of another prompt."""
  ids = itertools.count(10)
  groups = [
    ([prompt], [[next(ids), EOS] for _ in range(n)]) for prompt, n in sizes
  ]
  before = build(groups)
  found = examples_of(mismatch.attach(before, seed=seed, max_length=9))
  owner = {own: i for i, own, _ in found}
  total = len(found)
  per_prompt = collections.Counter(sizes[i][0] for i, _, _ in found)
  largest = max(n for _, n in sizes)
  assert all(owner[other] != i for i, _, other in found)
  if 2 * largest <= total:
    assert sorted(own for _, own, _ in found) == sorted(
      other for _, _, other in found
    )
    same = sum(sizes[owner[other]][0] == sizes[i][0] for i, _, other in found)
    assert same == max(0, 2 * max(per_prompt.values()) - total)


def test_one_large_record_takes_the_others_in_turn():
  groups = [([5], [[i, EOS] for i in range(10, 30)])]
  groups += [([6], [[i, EOS]]) for i in range(30, 34)]
  found = examples_of(mismatch.attach(build(groups), seed=0, max_length=9))
  used = collections.Counter(other for i, _, other in found if i == 0)
  assert sorted(used) == [(i, EOS) for i in range(30, 34)]
  assert max(used.values()) <= 7


def test_the_same_seed_gives_the_same():
  groups = [([i], [[100 + i, EOS]]) for i in range(40)]
  found = {
    seed: examples_of(mismatch.attach(build(groups), seed=seed, max_length=9))
    for seed in (0, 0, 1)
  }
  again = examples_of(mismatch.attach(build(groups), seed=0, max_length=9))
  assert found[0] == again
  same = sum(a == b for a, b in zip(found[0], found[1]))
  assert same < 10


def test_partners_are_spread():
  """They aren't neighbours in the file."""
  groups = [([i], [[1000 + i, EOS]]) for i in range(1000)]
  found = examples_of(mismatch.attach(build(groups), seed=0, max_length=9))
  distance = [abs(other[0] - 1000 - i) for i, _, other in found]
  # Of two random places among 1000, on average 333 apart.
  assert 300 < np.mean(distance) < 366


def test_what_does_not_fit_is_cut_and_has_no_end():
  groups = [([7, 7, 7], [[10, EOS]]), ([8], [[20, 21, 22, EOS]])]
  found = examples_of(mismatch.attach(build(groups), seed=0, max_length=5))
  assert found == [(0, (10, EOS), (20, 21)), (1, (20, 21, 22, EOS), (10, EOS))]


def test_only_one_record_is_an_error():
  with pytest.raises(ValueError, match='f:1 is the only record'):
    mismatch.attach(
      build([([5], [[10, EOS], [11, EOS]])]), seed=0, max_length=9
    )


@pytest.mark.parametrize(
  ('groups', 'message'),
  [
    ([([5], [[10, EOS]]), ([5], [[11, EOS]])], '2 of 2 .* the same prompt'),
    ([([5], [[10, EOS]]), ([6], [[10, EOS]])], '2 of 2 .* same as their own'),
    ([([5], [[10, EOS]]), ([6], [[11, EOS]])], None),
  ],
)
def test_warnings(groups, message, caplog):
  with caplog.at_level('WARNING'):
    mismatch.attach(build(groups), seed=0, max_length=9)
  if message is None:
    assert not caplog.records
  else:
    (record,) = caplog.records
    assert re.search(message, record.getMessage())


def test_what_is_scored_depends_on_the_root_of_the_prompt():
  rooted, rootless = ([5], [[10, EOS]]), ([], [[11, 12, EOS]])
  before = build([rooted, rootless])
  after = mismatch.attach(before, seed=0, max_length=6)
  for records, count in ((before, 1), (after, 2)):
    places = [
      [records.scored_places(i, c).tolist() for c in range(count)]
      for i in range(2)
    ]
    assert places == [
      [[0, 1], [0, 1, 2]][:count],
      [[1, 2], [1]][:count],
    ]
    assert records.scored.sum() == sum(len(x) for of in places for x in of)
