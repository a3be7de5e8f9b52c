"""KL per token: a full softmax's numbers, and the sampled log-ratio's mean."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax import types
from dpo_jax.losses import logprobs
from tests.losses import heads


def _batch(index_RxN, token_RxN, weight_RxN):
  """Only the fields that log-probs read."""
  none = np.zeros((len(index_RxN), 0), np.int32)
  return types.Batch(
    tokens_RxL=none,
    layout=None,
    score_index_RxN=np.asarray(index_RxN),
    score_token_RxN=np.asarray(token_RxN),
    score_slot_RxN=np.zeros_like(index_RxN),
    score_weight_RxN=np.asarray(weight_RxN, np.float32),
    slot_last_RxS=none,
    slot_length_RxS=none,
    slot_record_RxS=none,
    slot_label_RxS=none,
    example_slots_RxExK=none,
    example_weight_RxE=none,
    example_record_RxE=none,
  )


def _kls(
  hidden, kernel, other_hidden, other_kernel, batch, chunk_size, blocks=None
):
  return logprobs.token_kls(
    heads.head(kernel, blocks),
    hidden,
    heads.head(other_kernel, blocks),
    other_hidden,
    batch,
    chunk_size=chunk_size,
  )


def _softmax(z):
  e = np.exp(z - z.max(axis=-1, keepdims=True))
  return e / e.sum(axis=-1, keepdims=True)


def _random(rng, rows=2, length=11, scored=24, vocab=13):
  weight = np.ones((rows, scored))
  weight[:, scored - scored // 3 :] = 0
  batch = _batch(
    rng.integers(0, length, (rows, scored)),
    rng.integers(0, vocab, (rows, scored)),
    weight,
  )
  hidden = [rng.normal(size=(rows, length, d)) * 2 for d in (8, 5)]
  kernel = [rng.normal(size=(d, vocab)) for d in (8, 5)]
  return batch, hidden, kernel


@pytest.mark.parametrize(
  ('chunk_size', 'blocks'),
  [(1, None), (7, None), (24, None), (1000, None), (24, 1), (7, 3), (1000, 13)],
)
def test_values_and_gradients_equal_a_full_softmax(chunk_size, blocks):
  batch, hidden, kernel = _random(np.random.default_rng(0))
  at = (np.arange(2)[:, None], batch.score_index_RxN)
  # float64 NumPy; with p the policy, d KL / d logits = p (log p/q - KL).
  p, q = (_softmax(h[at] @ k) for h, k in zip(hidden, kernel))
  ratio = np.log(p / q)
  kl = (p * ratio).sum(axis=-1)
  expected = np.where(batch.score_weight_RxN > 0, kl, 0)
  dz = p * (ratio - kl[..., None]) * batch.score_weight_RxN[..., None]
  grad = np.einsum('rnd,rnv->dv', hidden[0][at], dz)

  f32 = [jnp.float32(x) for x in (*hidden, *kernel)]

  @jax.jit
  def total(kernel):
    h, other_h, _, other_kernel = f32
    return _kls(h, kernel, other_h, other_kernel, batch, chunk_size, blocks)

  np.testing.assert_allclose(total(f32[2]), expected, rtol=1e-5, atol=1e-6)
  got = jax.grad(lambda k: total(k).sum())(f32[2])
  np.testing.assert_allclose(got, grad, rtol=1e-4, atol=1e-4)


def test_equal_models_are_0_apart_and_near_ones_not_below():
  batch, hidden, kernel = _random(np.random.default_rng(1))
  h, k = jnp.float32(hidden[0]), jnp.float32(kernel[0])
  noise = jax.random.normal(jax.random.key(0), k.shape)
  for blocks in (None, 3):
    kls = jax.jit(lambda a, b: _kls(h * 9, a, h * 9, b, batch, 7, blocks))  # noqa: B023
    assert jnp.all(kls(k, k) == 0)
    for step in (1e-7, 1e-4, 1e-2):
      assert jnp.all(kls(k, k + step * noise) > -1e-5)


def test_heads_of_other_blocks_are_an_error():
  batch, hidden, kernel = _random(np.random.default_rng(1))
  whole, blocks = (heads.head(jnp.float32(kernel[0]), n) for n in (None, 1))
  h = jnp.float32(hidden[0])
  with pytest.raises(ValueError, match='the same blocks of the vocabulary'):
    logprobs.token_kls(whole, h, blocks, h, batch, chunk_size=7)


def _answers(vocab, length):
  """Every answer of at most `length` tokens; 0 is EOS."""
  for answer in itertools.product(range(vocab), repeat=length):
    end = answer.index(0) + 1 if 0 in answer else length
    if not any(answer[end:]):  # Each answer that EOS ends, once.
      yield answer[:end]


def test_its_mean_over_samples_is_that_of_their_log_ratio():
  # The model of an enumerable world: a row of logits for each prefix.
  vocab, length = 4, 3
  answers = list(_answers(vocab, length))
  prefixes = sorted({a[:i] for a in answers for i in range(len(a))})
  rng = np.random.default_rng(2)
  policy, reference = (
    jnp.float32(rng.normal(size=(len(prefixes), vocab)) * 2) for _ in range(2)
  )
  shape = (len(answers), length)
  hidden = np.zeros((*shape, len(prefixes)), np.float32)
  token, weight = np.zeros(shape, int), np.zeros(shape)
  for r, answer in enumerate(answers):
    for i, t in enumerate(answer):
      hidden[r, i, prefixes.index(answer[:i])] = 1
      token[r, i], weight[r, i] = t, 1
  batch = _batch(np.tile(np.arange(length), (len(answers), 1)), token, weight)

  kl_B = _kls(hidden, policy, hidden, reference, batch, 2).sum(axis=1)
  own_B, other_B = (
    logprobs.token_logps(heads.head(k), hidden, batch, chunk_size=2).sum(1)
    for k in (policy, reference)
  )
  probability_B = np.exp(np.float64(own_B))
  ratio_B = np.float64(own_B - other_B)
  assert probability_B.sum() == pytest.approx(1, abs=1e-6)
  mean = (probability_B * kl_B).sum()
  assert mean == pytest.approx((probability_B * ratio_B).sum(), rel=1e-5)
  # And it varies less from sample to sample.
  variances = [(probability_B * (x - mean) ** 2).sum() for x in (kl_B, ratio_B)]
  assert mean > 1 and variances[0] < 0.5 * variances[1]


def test_temporary_memory_is_a_chunks():
  def temporary(chunk_size, scored=2048, vocab=4096):
    ones = np.ones((1, scored), int)
    batch = _batch(ones, ones, ones)
    h, k = jnp.zeros((1, scored, 8)), jnp.zeros((8, vocab))
    kls = jax.jit(lambda h, k: _kls(h, k, h, 2 * k, batch, chunk_size))
    return kls.lower(h, k).compile().memory_analysis().temp_size_in_bytes

  chunk = 64 * 4096 * 4
  assert temporary(64) < 6 * chunk
  assert temporary(1024) > 8 * temporary(64)
