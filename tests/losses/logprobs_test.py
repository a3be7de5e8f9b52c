"""Chunked log-probs: the numbers of a full softmax, in a chunk's memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax import types
from dpo_jax.losses import logprobs
from tests.losses import heads


def _batch(rng, *, rows, length, scored, vocab, slots=3):
  """Only the fields that log-probs read; the last third is padding."""
  real = scored - scored // 3
  weight = np.zeros((rows, scored), np.float32)
  weight[:, :real] = rng.uniform(0.5, 2.0, (rows, real))
  none = np.zeros((rows, 0), np.int32)
  return types.Batch(
    tokens_RxL=none,
    layout=None,
    score_index_RxN=rng.integers(0, length, (rows, scored)),
    score_token_RxN=rng.integers(0, vocab, (rows, scored)),
    score_slot_RxN=rng.integers(0, slots, (rows, scored)),
    score_weight_RxN=weight,
    slot_last_RxS=np.zeros((rows, slots), np.int32),
    slot_length_RxS=none,
    slot_record_RxS=none,
    slot_label_RxS=none,
    example_slots_RxExK=rng.integers(0, slots, (rows, 4, 2)),
    example_weight_RxE=none,
    example_record_RxE=none,
  )


def _logps(hidden, kernel, batch, chunk_size, blocks=None):
  head = heads.head(kernel, blocks)
  return logprobs.token_logps(head, hidden, batch, chunk_size=chunk_size)


@pytest.mark.parametrize(
  ('chunk_size', 'blocks'),
  [(1, None), (7, None), (24, None), (1000, None), (24, 1), (7, 3), (1000, 13)],
)
def test_values_and_gradients_equal_a_full_softmax(chunk_size, blocks):
  rng = np.random.default_rng(0)
  batch = _batch(rng, rows=2, length=11, scored=24, vocab=13)
  hidden = rng.normal(size=(2, 11, 8)) * 3
  kernel = rng.normal(size=(8, 13))

  # float64 NumPy, position by position; gradients in closed form.
  expected = np.zeros((2, 24))
  grad_hidden, grad_kernel = np.zeros_like(hidden), np.zeros_like(kernel)
  for r in range(2):
    for n in range(24):
      if batch.score_weight_RxN[r, n] == 0:
        continue
      at, token = batch.score_index_RxN[r, n], batch.score_token_RxN[r, n]
      z = hidden[r, at] @ kernel
      p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
      expected[r, n] = np.log(p[token])
      dz = (np.eye(13)[token] - p) * batch.score_weight_RxN[r, n]
      grad_hidden[r, at] += kernel @ dz
      grad_kernel += np.outer(hidden[r, at], dz)

  h, k = jnp.float32(hidden), jnp.float32(kernel)
  logps = _logps(h, k, batch, chunk_size, blocks)
  np.testing.assert_allclose(logps, expected, rtol=1e-5, atol=1e-5)

  def loss(h, k):
    logps = _logps(h, k, batch, chunk_size, blocks)
    return logprobs.slot_sums(logps, batch).sum()

  got = jax.jit(jax.grad(loss, (0, 1)))(h, k)
  np.testing.assert_allclose(got[0], grad_hidden, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(got[1], grad_kernel, rtol=1e-4, atol=1e-5)


def test_sums_go_to_their_slots_and_examples():
  rng = np.random.default_rng(1)
  batch = _batch(rng, rows=2, length=5, scored=12, vocab=7)
  values = rng.normal(size=(2, 12)).astype(np.float32)
  sums = np.zeros((2, 3))
  for r in range(2):
    for n in range(12):
      sums[r, batch.score_slot_RxN[r, n]] += (
        values[r, n] * batch.score_weight_RxN[r, n]
      )
  got = logprobs.slot_sums(jnp.asarray(values), batch)
  np.testing.assert_allclose(got, sums, rtol=1e-5)
  pairs = logprobs.example_slots(got, batch)
  for r in range(2):
    for e in range(4):
      expected = sums[r][batch.example_slots_RxExK[r, e]]
      np.testing.assert_allclose(pairs[r, e], expected, rtol=1e-5)


@pytest.mark.parametrize('blocks', [None, 2])
def test_padding_of_infinite_hidden_states_stays_finite(blocks):
  rng = np.random.default_rng(2)
  batch = _batch(rng, rows=1, length=4, scored=6, vocab=5)
  batch = batch.replace(
    score_index_RxN=np.array([[0, 1, 2, 0, 3, 3]]),
    score_weight_RxN=np.array([[1, 1, 1, 1, 0, 0]], np.float32),
  )
  hidden = jnp.ones((1, 4, 3)).at[:, 3].set(jnp.inf)
  kernel = jnp.ones((3, 5))
  assert jnp.all(jnp.isfinite(_logps(hidden, kernel, batch, 2, blocks)))


def test_collisions_and_entropies_are_of_the_whole_vocabulary():
  rng = np.random.default_rng(3)
  batch = _batch(rng, rows=2, length=9, scored=12, vocab=13)
  hidden, kernel = rng.normal(size=(2, 9, 8)), rng.normal(size=(8, 13))
  z = hidden[np.arange(2)[:, None], batch.score_index_RxN] @ kernel
  p = np.exp(z) / np.exp(z).sum(axis=-1, keepdims=True)
  real = batch.score_weight_RxN > 0
  expected = {
    'collisions': np.log((p**2).sum(axis=-1)) * real,
    'entropies': -(p * np.log(p)).sum(axis=-1) * real,
  }
  for blocks in (None, 3):

    def scores(hidden, kernel, blocks=blocks):
      return logprobs.token_scores(
        heads.head(kernel, blocks),
        hidden,
        batch,
        chunk_size=5,
        collisions=True,
        entropies=True,
      )

    arrays = jnp.float32(hidden), jnp.float32(kernel)
    for name, value in expected.items():
      got = scores(*arrays)[name]
      np.testing.assert_allclose(got, value, rtol=1e-5, atol=1e-5)
    # A measurement: nothing is learned from it.
    grads = jax.grad(lambda h, k: scores(h, k)['entropies'].sum(), (0, 1))
    assert not any(np.any(g) for g in grads(*arrays))


def test_no_block_is_multiplied_more_often_than_it_must_be():
  """Once forward, once again and twice for its gradients backward."""
  rng = np.random.default_rng(4)
  batch = _batch(rng, rows=1, length=256, scored=256, vocab=512)
  hidden, kernel = jnp.zeros((1, 256, 32)), jnp.zeros((32, 512))

  def products(blocks):
    def loss(h, k):
      return _logps(h, k, batch, 256, blocks).sum()

    step = jax.jit(jax.value_and_grad(loss, (0, 1)))
    return step.lower(hidden, kernel).compile().as_text().count(' dot(')

  assert products(4) == products(None) == 4


def test_gradients_of_blocks_add_up_in_float32():
  """In bfloat16, parts of 2^-11 would leave the 1 that came before them."""
  batch = _batch(np.random.default_rng(5), rows=1, length=1, scored=1, vocab=64)
  batch = batch.replace(score_token_RxN=np.array([[63]]))
  kernel = jnp.full((4, 64), 2.0**-5, jnp.bfloat16).at[:, 63].set(1)
  head = heads.head(kernel, 64)

  def loss(h):
    return logprobs.token_logps(head, h, batch, chunk_size=1).sum()

  # Where all tokens are as likely, the picked column less the mean of all.
  got = jax.grad(loss)(jnp.zeros((1, 1, 4), jnp.bfloat16))
  expected = 1 - (1 + 63 * 2.0**-5) / 64
  np.testing.assert_allclose(np.float32(got), expected, rtol=2**-8)


@functools.cache
def _temporary_bytes(scored, vocab, length, chunk_size=64):
  rng = np.random.default_rng(0)
  batch = _batch(rng, rows=1, length=length, scored=scored, vocab=vocab)

  def loss(h, k):
    return _logps(h, k, batch, chunk_size).sum()

  hidden, kernel = jnp.zeros((1, length, 16)), jnp.zeros((16, vocab))
  compiled = jax.jit(jax.grad(loss, (0, 1))).lower(hidden, kernel).compile()
  memory = compiled.memory_analysis()
  # The gradients of hidden states and kernel are as large as these.
  carried = 4 * (hidden.nbytes + kernel.nbytes)
  return memory.temp_size_in_bytes - carried


def test_temporary_memory_is_a_chunks_and_no_more():
  chunk = 64 * 4096 * 4
  base = _temporary_bytes(128, 4096, 256)
  # Sixteen times the scored tokens and the row: no more than their own arrays.
  assert _temporary_bytes(2048, 4096, 4096) < base + 0.5 * chunk
  # Four times the vocabulary: four times the chunk, not [N, V].
  assert _temporary_bytes(2048, 4 * 4096, 4096) < 4 * (base + 1.5 * chunk)
  assert _temporary_bytes(2048, 4096, 4096, chunk_size=2048) > 8 * chunk
