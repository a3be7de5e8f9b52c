"""Log-probabilities of the tokens that count, without ever holding [.., L, V].

The only log-prob path of the project: hidden states are gathered at the
positions that predict a scored token, and unembedding, logsumexp and gather run
over chunks of those. A chunk's logits are recomputed in the backward pass.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from dpo_jax import types


def token_logps(
  logits_fn: Callable[[types.Array], types.Array],
  hidden_RxLxD: types.Array,
  batch: types.Batch,
  *,
  chunk_size: int,
) -> types.Array:
  """log p(token | what it sees) of each scored token, f32[R, N] in nats.

  `logits_fn` maps hidden_..xD to float32 logits_..xV. Chunks run along N, never
  across rows, so that rows can be sharded; at most R * chunk_size * V logits
  exist at a time. Chunks without any scored token are skipped. Padding gets 0.
  """
  rows, scored = batch.score_index_RxN.shape
  chunks = -(-scored // chunk_size)
  size = -(-scored // chunks)

  def split(x_RxNx):
    more = [(0, 0)] * (x_RxNx.ndim - 2)
    x = jnp.pad(x_RxNx, [(0, 0), (0, chunks * size - scored), *more])
    return x.reshape(rows, chunks, size, *x.shape[2:]).swapaxes(0, 1)

  def logps(h_RxCxD, token_RxC):
    logits = logits_fn(h_RxCxD).astype(jnp.float32)
    picked = jnp.take_along_axis(logits, token_RxC[..., None], axis=-1)[..., 0]
    return picked - jax.nn.logsumexp(logits, axis=-1)

  def body(_, chunk):
    hidden, token, real = chunk
    out = jax.lax.cond(
      jnp.any(real),
      logps,
      lambda h, t: jnp.zeros(t.shape, jnp.float32),
      hidden,
      token,
    )
    return None, jnp.where(real, out, 0.0)

  real_RxN = batch.score_weight_RxN > 0
  hidden_RxNxD = take_rows(hidden_RxLxD, batch.score_index_RxN)
  xs = tuple(map(split, (hidden_RxNxD, batch.score_token_RxN, real_RxN)))
  _, out = jax.lax.scan(jax.checkpoint(body), None, xs)
  return out.swapaxes(0, 1).reshape(rows, -1)[:, :scored]


def take_rows(x_RxLx: types.Array, index_RxI: types.Array) -> types.Array:
  """x[r, index[r, i]]: a gather that stays within each row."""
  return jax.vmap(lambda x, index: x[index])(x_RxLx, index_RxI)


def slot_sums(values_RxN: types.Array, batch: types.Batch) -> types.Array:
  """Weighted sums of per-token values over each completion, f32[R, S]."""
  slots = jnp.arange(batch.slot_last_RxS.shape[1])[None, None]
  owner_RxNxS = batch.score_slot_RxN[..., None] == slots
  weighted = values_RxN * batch.score_weight_RxN
  return jnp.where(owner_RxNxS, weighted[..., None], 0.0).sum(axis=1)


def example_slots(values_RxS: types.Array, batch: types.Batch) -> types.Array:
  """Per-slot values of each example's K completions, [R, E, K]."""
  return take_rows(values_RxS, batch.example_slots_RxExK)
