"""Every text is in a batch once, at the slot of its sample."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_jax.data import preview
from dpo_jax.rewards import prompt_batches

IDS = st.lists(st.integers(1, 9), max_size=30)


@given(
  prompts=st.lists(IDS, min_size=1, max_size=4),
  texts=st.lists(st.tuples(st.integers(0, 3), IDS), max_size=20),
  batch_size=st.integers(1, 9),
)
def test_each_sample_is_read_once(prompts, texts, batch_size):
  texts = [(prompts[i % len(prompts)], completion) for i, completion in texts]
  texts = [(p, c) for p, c in texts if p or c]
  found = {}
  for batch, samples in prompt_batches.group(texts, batch_size):
    row = jax.tree.map(lambda x: np.asarray(x[0]), batch)
    slots = np.flatnonzero(row.slot_record_RxS >= 0)
    assert slots.tolist() == list(range(len(samples)))
    assert len(samples) <= batch_size
    for slot, sample in zip(slots, samples):
      held = preview.completion(row, slot)
      read = [*held.prompt.tolist(), *held.tokens.tolist()]
      last = row.slot_last_RxS[slot]
      assert row.tokens_RxL[last] == read[-1]
      assert sample not in found
      found[sample] = read
  assert found == {i: [*p, *c] for i, (p, c) in enumerate(texts)}


def test_a_prompt_is_in_a_batch_once():
  prompt = list(range(1, 41))
  texts = [(prompt, [i] * 5) for i in range(8)]
  (found,) = prompt_batches.group(texts, 8)
  assert (found.batch.tokens_RxL == 40).sum() == 1
  assert found.batch.tokens_RxL.shape == (1, 80)


def test_there_are_few_shapes():
  lengths = {prompt_batches.padded(n) for n in range(1, 1025)}
  assert len(lengths) == 1 + 4 * 6
  for n in range(16, 1025):
    assert n <= prompt_batches.padded(n) <= 1.25 * n


@pytest.mark.parametrize('texts', [[], iter(())])
def test_nothing_to_read(texts):
  assert not list(prompt_batches.group(texts, 4))
