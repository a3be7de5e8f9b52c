"""Every text is read once, where the batch says that its sample ends."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_jax.rewards import prompt_batches

IDS = st.lists(st.integers(1, 9), max_size=30)


def _read(batch) -> list[list[int]]:
  """The tokens that a model sees up to the end of each sample."""
  row = jax.tree.map(lambda x: np.asarray(x[0]), batch[:3])
  tokens, layout, last = row
  out = []
  for end in last[: len(batch.samples)]:
    tree, branch = layout.segment_RxL[end], layout.branch_RxL[end]
    seen = (layout.segment_RxL == tree) & np.isin(
      layout.branch_RxL, [0, branch]
    )
    place = layout.position_RxL[seen & (np.arange(len(tokens)) <= end)]
    assert place.tolist() == list(range(len(place)))
    out.append(tokens[seen & (np.arange(len(tokens)) <= end)].tolist())
  return out


@given(
  prompts=st.lists(IDS, min_size=1, max_size=4),
  texts=st.lists(st.tuples(st.integers(0, 3), IDS), max_size=20),
  batch_size=st.integers(1, 9),
)
def test_each_sample_is_read_once(prompts, texts, batch_size):
  texts = [(prompts[i % len(prompts)], completion) for i, completion in texts]
  texts = [(p, c) for p, c in texts if p or c]
  found = {}
  for batch in prompt_batches.group(texts, batch_size):
    assert 0 < len(batch.samples) <= batch_size == batch.last_1xS.shape[1]
    for sample, read in zip(batch.samples, _read(batch), strict=True):
      assert sample not in found
      found[sample] = read
  assert found == {i: [*p, *c] for i, (p, c) in enumerate(texts)}


def test_a_prompt_is_in_a_batch_once():
  prompt = list(range(1, 41))
  texts = [(prompt, [i] * 5) for i in range(8)]
  (found,) = prompt_batches.group(texts, 8)
  assert (found.tokens_1xL == 40).sum() == 1
  assert found.tokens_1xL.shape == (1, 80)


def test_batches_are_full():
  """Also beside a prompt of many completions."""
  rng = np.random.default_rng(0)
  texts = [([i], [1] * rng.integers(1, 9)) for i in range(640)]
  texts += [([1000], [i] * 3) for i in range(16)]
  found = list(prompt_batches.group(texts, 16))
  assert len(found) <= 42
  # What is computed is the tokens, padded by a quarter at most, and attention
  # to the longest tree.
  for batch in found:
    real = int((batch.layout.segment_RxL > 0).sum())
    assert batch.tokens_1xL.size <= max(1.25 * real, 16)
    longest = int(batch.layout.tree_length_RxT.max())
    assert batch.layout.profile[-1][0] <= max(1.25 * longest, 16) + 15


def test_few_programs_are_compiled():
  """For collections of 16 prompts with 4 samples each."""
  rng = np.random.default_rng(0)
  keys = []
  for _ in range(20):
    texts = []
    for prompt in range(16):
      ids = [prompt] * int(rng.integers(20, 60))
      texts += [(ids, [1] * int(rng.integers(5, 65))) for _ in range(4)]
    for batch in prompt_batches.group(texts, 16):
      shapes = jax.tree.map(np.shape, batch[:3])
      keys.append((str(shapes), batch.layout.profile))
  assert len(set(keys[:40])) <= 12 and len(set(keys)) <= 16


def test_there_are_few_lengths():
  lengths = {prompt_batches.padded(n) for n in range(1, 1025)}
  assert len(lengths) == 1 + 4 * 6
  for n in range(16, 1025):
    assert n <= prompt_batches.padded(n) <= 1.25 * n


@pytest.mark.parametrize('texts', [[], iter(())])
def test_nothing_to_read(texts):
  assert not list(prompt_batches.group(texts, 4))
