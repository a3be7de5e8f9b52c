"""Log-probabilities of the tokens that count, without ever holding [.., L, V].

The only log-prob path of the project: hidden states are gathered at the
positions that predict a scored token, and unembedding, logsumexp and gather run
over chunks of those. A chunk's logits are recomputed in the backward pass.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from dpo_jax import types
from dpo_jax.losses import vocabulary

LogitsFn = Callable[[types.Array], types.Array]


def token_scores(
  logits_fn: LogitsFn,
  hidden_RxLxD: types.Array,
  batch: types.Batch,
  *,
  chunk_size: int,
  collisions: bool = False,
  vocab_axis: str | None = None,
) -> dict[str, types.Array]:
  """Of each scored token, f32[R, N]: 'logps', and 'collisions' on request.

  'logps' is log p(token | what it sees) in nats; 'collisions' log sum_v p(v)^2
  over the vocabulary there, what a token that is drawn has on average for a
  probability.

  `logits_fn` maps hidden_..xD to float32 logits_..xV. Chunks run along N, never
  across rows, so that rows can be sharded; at most R * chunk_size * V logits
  exist at a time. Chunks without any scored token are skipped. Padding gets 0.
  `vocab_axis`: see vocabulary.py.
  """

  def scores(h_RxCxD, token_RxC):
    logits = logits_fn(h_RxCxD).astype(jnp.float32)
    total = vocabulary.logsumexp(logits, vocab_axis)
    out = {'logps': vocabulary.pick(logits, token_RxC, vocab_axis) - total}
    if collisions:
      twice = vocabulary.logsumexp(2 * logits, vocab_axis)
      out['collisions'] = twice - 2 * total
    return out

  hidden_RxNxD = take_rows(hidden_RxLxD, batch.score_index_RxN)
  inputs = (hidden_RxNxD, batch.score_token_RxN)
  return _in_chunks(scores, inputs, batch.score_weight_RxN > 0, chunk_size)


def token_logps(
  logits_fn: LogitsFn,
  hidden_RxLxD: types.Array,
  batch: types.Batch,
  *,
  chunk_size: int,
  vocab_axis: str | None = None,
) -> types.Array:
  """The 'logps' of `token_scores`, f32[R, N]."""
  out = token_scores(
    logits_fn,
    hidden_RxLxD,
    batch,
    chunk_size=chunk_size,
    vocab_axis=vocab_axis,
  )
  return out['logps']


def token_kls(
  policy_logits_fn: LogitsFn,
  policy_hidden_RxLxD: types.Array,
  reference_logits_fn: LogitsFn,
  reference_hidden_RxLxD: types.Array,
  batch: types.Batch,
  *,
  chunk_size: int,
  vocab_axis: str | None = None,
) -> types.Array:
  """KL(policy || reference) over the vocabulary where each token was predicted.

  f32[R, N] in nats: sum_v p(v) log(p(v) / q(v)) with p and q what policy and
  reference predict at a scored position; not below 0 but for rounding, and 0
  where both are the same. Its sum over the tokens of a sample of the policy has
  the mean of the sample's log-ratio and a smaller variance. Chunks as in
  `token_scores`, with the logits of both models in each.
  """

  def kls(policy_RxCxD, reference_RxCxD):
    policy = policy_logits_fn(policy_RxCxD).astype(jnp.float32)
    reference = reference_logits_fn(reference_RxCxD).astype(jnp.float32)
    logp, logq = (
      logits - vocabulary.logsumexp(logits, vocab_axis)[..., None]
      for logits in (policy, reference)
    )
    return vocabulary.total(jnp.exp(logp) * (logp - logq), vocab_axis)

  inputs = (
    take_rows(policy_hidden_RxLxD, batch.score_index_RxN),
    take_rows(reference_hidden_RxLxD, batch.score_index_RxN),
  )
  return _in_chunks(kls, inputs, batch.score_weight_RxN > 0, chunk_size)


def _in_chunks(fn, inputs, real_RxN, chunk_size: int):
  """fn(*inputs) -> tree of f32[R, N], of [R, N, ...] arrays, by chunks of N.

  0 where not `real`; what `fn` makes inside is recomputed in the backward pass.
  """
  rows, scored = real_RxN.shape
  chunks = -(-scored // chunk_size)
  size = -(-scored // chunks)

  def split(x_RxNx):
    more = [(0, 0)] * (x_RxNx.ndim - 2)
    x = jnp.pad(x_RxNx, [(0, 0), (0, chunks * size - scored), *more])
    return x.reshape(rows, chunks, size, *x.shape[2:]).swapaxes(0, 1)

  def body(_, chunk):
    real, *inputs = chunk
    # Made of `real`: both branches must differ between the same devices.
    zeros = jnp.where(real, 0.0, 0.0)
    nothing = jax.tree.map(lambda x: zeros, jax.eval_shape(fn, *inputs))
    out = jax.lax.cond(jnp.any(real), fn, lambda *_: nothing, *inputs)
    return None, jax.tree.map(lambda x: jnp.where(real, x, 0.0), out)

  xs = tuple(map(split, (real_RxN, *inputs)))
  _, out = jax.lax.scan(jax.checkpoint(body), None, xs)
  return jax.tree.map(
    lambda x: x.swapaxes(0, 1).reshape(rows, -1)[:, :scored], out
  )


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
