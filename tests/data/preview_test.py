"""The preview shows what the arrays of a batch train, not what was meant."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_jax.data import preview
from tests import forests


class _Words:
  """Token 7 is the text 't7 '."""

  def decode(self, ids, *, start=True):
    del start
    return ''.join(f't{i} ' for i in ids)


def _batch(records, **options):
  options = dict(rows=1, batch_size=4, num_batches=1, seed=0) | options
  return forests.pack(records, **options)[0]


def _completions(batch):
  row = preview.first_row(batch)
  slots = np.nonzero(row.slot_record_RxS >= 0)[0]
  return [preview.completion(row, slot) for slot in slots]


@given(
  seed=st.integers(0, 10_000),
  arity=st.sampled_from([1, 2, 3]),
  share=st.booleans(),
  rows=st.sampled_from([1, 2]),
)
@settings(max_examples=20, deadline=None, derandomize=True)
def test_arrays_give_the_records_back(seed, arity, share, rows):
  records = forests.random_records(seed, num=5, arity=arity)
  batch = _batch(records, rows=rows, share_prompt=share)
  for found in _completions(batch):
    assert found.prompt.tolist() == records.prompt(found.record).tolist()
    assert found.tokens.tolist() in [
      c.tolist() for c in records.completions(found.record)
    ]
    # Without a prompt nothing predicts the first token.
    first = [True] if len(found.prompt) else [False]
    assert found.scored.tolist() == first + [True] * (len(found.tokens) - 1)
    assert not found.faults
  text = preview.preview(batch, records, _Words())
  assert 'WRONG' not in text
  assert 'forest:' in text


def test_the_whole_text():
  records = forests.make(
    [([1, 2], [[3, 4], [5, 6], [7, 8, 9]], [(2, 0), (2, 1)])]
  )
  batch = _batch(records, batch_size=2)
  # Of the third completion only its middle is scored.
  weight = batch.score_weight_RxN.copy()
  (places,) = np.nonzero(np.isin(batch.score_token_RxN[0], [7, 9]))
  weight[0, places] = 0
  batch = batch.replace(score_weight_RxN=weight)
  assert preview.preview(batch, records, _Words()) == (
    'First row of the batch: 9 tokens, 5 of them scored: those between ⟦ and '
    '⟧.\n\n'
    'forest:1: prompt, 2 tokens\n'
    '  t1 t2 \n'
    'completion 1: 2 of 2 tokens scored\n'
    '  ⟦t3 t4 ⟧\n'
    'completion 2: 2 of 2 tokens scored\n'
    '  ⟦t5 t6 ⟧\n'
    'completion 3: 1 of 3 tokens scored\n'
    '  t7 ⟦t8 ⟧t9 \n'
    'preferred: 3 > 1, 3 > 2'
  )
  short = preview.preview(batch, records, _Words(), max_completions=1)
  assert 'and 2 more completions' in short
  assert 'completion 2' not in short and 't5' not in short


def _shifted(batch):
  return batch.replace(score_index_RxN=batch.score_index_RxN + 1)


def _shifted_back(batch):
  return batch.replace(score_index_RxN=np.maximum(batch.score_index_RxN - 1, 0))


def _of_other_tokens(batch):
  return batch.replace(score_token_RxN=batch.score_token_RxN + 1)


def _of_other_slots(batch):
  slots = batch.slot_record_RxS.shape[1]
  return batch.replace(score_slot_RxN=(batch.score_slot_RxN + 1) % slots)


def _scored_twice(batch):
  index, token = batch.score_index_RxN.copy(), batch.score_token_RxN.copy()
  # The score after the first of each slot becomes a copy of it.
  _, first = np.unique(batch.score_slot_RxN[0], return_index=True)
  index[0, first + 1], token[0, first + 1] = index[0, first], token[0, first]
  return batch.replace(score_index_RxN=index, score_token_RxN=token)


DAMAGES = (
  _shifted,
  _shifted_back,
  _of_other_tokens,
  _of_other_slots,
  _scored_twice,
)


@pytest.mark.parametrize('damage', DAMAGES, ids=lambda f: f.__name__)
@pytest.mark.parametrize('min_prompt', [0, 1])
def test_scores_that_fit_no_token_are_shown(damage, min_prompt):
  # Distinct tokens, so that no wrong place holds the right one by chance.
  ids = iter(range(1, 100))

  def take(n):
    return [next(ids) for _ in range(n)]

  records = forests.make(
    [
      (take(3 * min_prompt), [take(3), take(4)], [(0, 1)]),
      (take(2 * min_prompt), [take(4), take(3)], [(1, 0)]),
    ]
  )
  batch = _batch(records, batch_size=2)
  damaged = damage(batch)
  assert not any(found.faults for found in _completions(batch))
  assert all(found.faults for found in _completions(damaged))
  assert 'WRONG' in preview.preview(damaged, records, _Words())


def test_scores_of_a_twin_are_not_taken_for_its_own():
  records = forests.make([([1, 2], [[3, 4], [3, 4]], [(0, 1)])])
  batch = _batch(records, batch_size=1)
  swapped = batch.replace(score_slot_RxN=1 - batch.score_slot_RxN)
  assert not any(found.faults for found in _completions(batch))
  assert all(found.faults for found in _completions(swapped))


def test_unshared_trees_come_with_those_they_are_compared_with():
  records = forests.make([([1, 2], [[3, 4], [5]], [(1, 0)])])
  batch = _batch(records, batch_size=1, share_prompt=False)
  text = preview.preview(batch, records, _Words())
  assert text.count('prompt') == 1
  assert '⟦t3 t4 ⟧' in text and '⟦t5 ⟧' in text
  assert text.endswith('preferred: 2 > 1')


def test_another_prompt_in_a_tree_of_its_own_is_shown():
  records = forests.make([([1, 2], [[3, 4], [5]], [(1, 0)])])
  batch = _batch(records, batch_size=1, share_prompt=False)
  tokens = batch.tokens_RxL.copy()
  tokens[0, batch.layout.tree_start_RxT[0, 1]] = 9
  text = preview.preview(batch.replace(tokens_RxL=tokens), records, _Words())
  assert 'WRONG: it continues another prompt:\n  t9 t2' in text


@pytest.mark.parametrize('max_trees', [1, 2, 3])
def test_so_many_trees_are_shown(max_trees):
  records = forests.random_records(3, num=6, min_prompt=1)
  batch = _batch(records, batch_size=6)
  text = preview.preview(batch, records, _Words(), max_trees=max_trees)
  assert text.count('prompt') == max_trees


class _Long(_Words):
  def decode(self, ids, *, start=True):
    del start
    return ('word' * 50 + '\n\x1b[31m') * 40


def test_long_and_unprintable_text_stays_in_bounds():
  records = forests.random_records(3, num=3, min_prompt=1)
  text = preview.preview(_batch(records), records, _Long())
  assert max(map(len, text.split('\n'))) <= preview.WIDTH
  assert 'characters ...' in text
  assert '\x1b' not in text and r'\x1b[31m' in text
  assert len(text) < 10_000
