"""Packed forests score what plain sequences score, whatever the packing."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_jax import models, types
from dpo_jax.data import packing
from dpo_jax.losses import logprobs
from dpo_jax.methods import dpo, sft
from dpo_jax.models import attention
from dpo_jax.training import step
from tests import forests


def _packed(records, **options):
  options = dict(rows=1, batch_size=4, num_batches=1, seed=0) | options
  return forests.pack(records, **options)


@functools.partial(jax.jit, static_argnums=2)
def _batch_logps(params, batch, backend):
  policy = models.policy(forests.CONFIG, models.Compute(attention=backend))
  hidden = policy.hidden(params, batch.tokens_RxL, batch.layout)
  return logprobs.token_logps(policy.head(params), hidden, batch, chunk_size=5)


def _slots(batch):
  """[(row, slot, tokens of the completion)] of a batch."""
  out = []
  for r, s in zip(*np.nonzero(batch.slot_record_RxS >= 0)):
    mine = (batch.score_slot_RxN[r] == s) & (batch.score_weight_RxN[r] > 0)
    out.append((r, s, mine))
  return out


def _completion_of(records, batch, row, slot, mine):
  """The index, in its record, of the completion in a slot."""
  record = int(batch.slot_record_RxS[row, slot])
  skip = 0 if records.prompt_length(record) else 1
  tokens = batch.score_token_RxN[row, mine].tolist()
  return record, next(
    i
    for i, c in enumerate(records.completions(record))
    if c[skip:].tolist() == tokens
  )


@pytest.mark.parametrize('backend', attention.BACKENDS)
@given(
  seed=st.integers(0, 10_000),
  rows=st.sampled_from([1, 2, 4]),
  share=st.booleans(),
  limit=st.sampled_from([None, 30]),
  arity=st.sampled_from([1, 2, 3]),
)
@settings(max_examples=6, deadline=None, derandomize=True)
def test_logps_equal_plain_sequences(backend, seed, rows, share, limit, arity):
  records = forests.random_records(seed, num=6, arity=arity)
  packed = _packed(
    records, rows=rows, share_prompt=share, max_tree_tokens=limit
  )
  params = forests.params(seed)
  batch = packed[0]
  logps = _batch_logps(params, batch, backend)
  sums = logprobs.slot_sums(logps, batch)
  sequences = forests.Plain(records)
  table = np.asarray(sequences.logps(params))
  for row, slot, mine in _slots(batch):
    at = sequences.index[_completion_of(records, batch, row, slot, mine)]
    plain = table[at, sequences.mask[at]]
    np.testing.assert_allclose(logps[row, mine], plain, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(sums[row, slot], plain.sum(), rtol=1e-5)
    assert batch.slot_length_RxS[row, slot] == len(plain)
  padding = batch.score_weight_RxN == 0
  assert np.all(np.asarray(logps)[padding] == 0)


@pytest.mark.parametrize(
  'backend',
  [
    pytest.param(name, marks=[pytest.mark.long] * (name != 'tree'))
    for name in attention.BACKENDS
  ],
)
@pytest.mark.parametrize(
  ('method', 'accumulation_steps', 'share'),
  [
    pytest.param('dpo', 1, True, marks=pytest.mark.long),
    ('dpo', 2, True),
    pytest.param('dpo', 4, False, marks=pytest.mark.long),
    ('sft', 2, True),
  ],
)
@given(seed=st.integers(0, 10_000))
@settings(max_examples=2, deadline=None, derandomize=True)
def test_gradients_equal_plain_sequences(
  backend, accumulation_steps, share, method, seed
):
  arity = {'dpo': 2, 'sft': 1}[method]
  records = forests.random_records(seed, num=6, arity=arity)
  packed = _packed(records, rows=4, share_prompt=share, max_tree_tokens=25)
  batch = packed[0]
  params, reference = forests.params(seed), forests.params(seed + 100)
  make = {
    'dpo': functools.partial(dpo.make, beta=0.3, reference='in_step'),
    'sft': sft.make,
  }
  policy = models.policy(forests.CONFIG, models.Compute(attention=backend))
  built = make[method](logprob_chunk=6)(policy)
  total, (loss_sum, count, _) = jax.jit(
    lambda params, frozen, batch: step.batch_gradient(
      built, params, frozen, None, batch, jax.random.key(0), accumulation_steps
    )
  )(params, types.Frozen(reference=reference), batch)

  sequences = forests.Plain(records)
  examples = [
    [sequences.index[record, c] for c in example]
    for record, group in packed.placement.stream.slice(0, 4)
    for example in group
  ]

  def plain(params):
    sums = sequences.logps(params).sum(axis=1)
    if method == 'sft':
      # A completion that a group names twice is scored once.
      return -sum(sums[i] for i in sorted({i for (i,) in examples}))
    ratio = sums - sequences.logps(reference).sum(axis=1)
    h = jnp.stack([ratio[w] - ratio[loser] for w, loser in examples])
    return -jax.nn.log_sigmoid(0.3 * h).sum()

  value, expected = jax.value_and_grad(plain)(params)
  np.testing.assert_allclose(loss_sum, value, rtol=1e-5)
  forests.assert_trees_close(total, expected)
  assert count > 0


def test_split_groups_keep_every_example_and_fit():
  records = forests.random_records(3, num=30, max_branches=6)
  for record in range(len(records)):
    examples = [tuple(e) for e in records.examples(record).tolist()]
    groups = packing.split_examples(records, record, examples, 24)
    back = [
      tuple(g.completions[i] for i in e) for g in groups for e in g.examples
    ]
    assert back == examples
    for group in groups:
      tokens = packing.tree_lengths(records, group, True)[0]
      assert tokens <= 24 or len(group.examples) == 1


def test_trees_are_contiguous_and_sorted():
  records = forests.random_records(4, num=20)
  packed = _packed(records, rows=2, batch_size=12)
  layout = packed[0].layout
  for r in range(2):
    lengths = layout.tree_length_RxT[r]
    assert list(lengths) == sorted(lengths, reverse=True)
    for t, (start, length) in enumerate(zip(layout.tree_start_RxT[r], lengths)):
      at = layout.segment_RxL[r, start : start + length]
      assert np.all(at == t + 1)
    counted = collections.Counter(layout.segment_RxL[r].tolist())
    assert counted[0] == layout.segment_RxL.shape[1] - lengths.sum()


def test_assign_rows_is_deterministic_and_balanced():
  tokens = [5, 9, 5, 1, 3, 3, 7, 2]
  rows = packing.assign_rows(tokens, 3)
  assert sorted(i for row in rows for i in row) == list(range(8))
  loads = [sum(tokens[i] for i in row) for row in rows]
  assert max(loads) <= 4 / 3 * 13
  assert rows == packing.assign_rows(tokens, 3)
