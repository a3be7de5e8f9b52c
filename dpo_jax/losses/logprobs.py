"""Log-probabilities of scored tokens, without logits of a whole row in memory.

The only log-prob path of the project: hidden states are gathered at the
positions that predict a scored token, and the unembedding, the logsumexp and
the gather of the token's logit run over chunks of those. A chunk's logits are
recomputed in the backward pass. Where the vocabulary comes in blocks
(`types.Head`), the outer loop runs over blocks, the inner one over chunks.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from dpo_jax import types
from dpo_jax.losses import vocabulary


def token_scores(
  head: types.Head,
  hidden_RxLxD: types.Array,
  batch: types.Batch,
  *,
  chunk_size: int,
  collisions: bool = False,
  entropies: bool = False,
) -> dict[str, types.Array]:
  """Of each scored token, f32[R, N]: 'logps', and the others on request.

  'logps' is log p(token | context) in nats. 'collisions' is log sum_v p(v)^2
  over the vocabulary: the log of the mean probability of a sampled token.
  'entropies' is -sum_v p(v) log p(v) in nats, a measurement: no gradient.

  Chunks run along N, never across rows, so that rows can be sharded; at most
  R * chunk_size * U logits exist at a time, U being the size of a block of the
  vocabulary. Chunks without a scored token are skipped. Padding gets 0.
  """

  def of_block(logits_fn, span, h_RxCxD, token_RxC):
    logits = logits_fn(h_RxCxD)
    out = {
      'total': jax.nn.logsumexp(logits, axis=-1),
      'picked': vocabulary.pick(logits, token_RxC, span),
    }
    if collisions:
      out['twice'] = jax.nn.logsumexp(2 * logits, axis=-1)
    if entropies:
      fixed = jax.lax.stop_gradient(logits)
      total = jax.nn.logsumexp(fixed, axis=-1)
      p = jnp.exp(fixed - total[..., None])
      out['mean_logit'] = jnp.where(p > 0, p * fixed, 0.0).sum(axis=-1)
    return out

  hidden_RxNxD = take_rows(hidden_RxLxD, batch.score_index_RxN)
  inputs = (hidden_RxNxD, batch.score_token_RxN)
  real_RxN = batch.score_weight_RxN > 0
  parts = _in_blocks(of_block, (head,), inputs, real_RxN, chunk_size)
  total_RxN = vocabulary.join_logsumexp(parts['total'], head.axis)
  picked_RxN = vocabulary.join_sum(parts['picked'], head.axis)
  out = {'logps': picked_RxN - total_RxN}
  if collisions:
    twice_RxN = vocabulary.join_logsumexp(parts['twice'], head.axis)
    out['collisions'] = twice_RxN - 2 * total_RxN
  if entropies:
    # The mean logit over all blocks, by each block's probability.
    block_BxRxN = jnp.exp(
      jax.lax.stop_gradient(parts['total'] - total_RxN[None])
    )
    mean_RxN = vocabulary.join_sum(block_BxRxN * parts['mean_logit'], head.axis)
    out['entropies'] = jax.lax.stop_gradient(total_RxN) - mean_RxN
  return {name: jnp.where(real_RxN, x, 0.0) for name, x in out.items()}


def token_logps(
  head: types.Head,
  hidden_RxLxD: types.Array,
  batch: types.Batch,
  *,
  chunk_size: int,
) -> types.Array:
  """The 'logps' of `token_scores`, f32[R, N]."""
  return token_scores(head, hidden_RxLxD, batch, chunk_size=chunk_size)['logps']


def token_kls(
  policy_head: types.Head,
  policy_hidden_RxLxD: types.Array,
  reference_head: types.Head,
  reference_hidden_RxLxD: types.Array,
  batch: types.Batch,
  *,
  chunk_size: int,
) -> types.Array:
  """KL(policy || reference) over the vocabulary at each scored token.

  f32[R, N] in nats: sum_v p(v) log(p(v) / q(v)), where p and q are what policy
  and reference predict there; 0 where they agree, and below 0 only by rounding.
  Summed over the tokens of a sample of the policy, it has the mean of the
  sample's log-ratio and a smaller variance. Chunks as in `token_scores`, with
  the logits of both models in each. By the chain rule it is the KL between the
  distributions over blocks, plus the mean KL within a block. ValueError for
  heads whose blocks differ.
  """

  def of_block(policy_fn, reference_fn, span, policy_RxCxD, reference_RxCxD):
    del span
    policy, reference = policy_fn(policy_RxCxD), reference_fn(reference_RxCxD)
    totals = [jax.nn.logsumexp(x, axis=-1) for x in (policy, reference)]
    logp, logq = policy - totals[0][..., None], reference - totals[1][..., None]
    within = jnp.sum(jnp.exp(logp) * (logp - logq), axis=-1)
    return {'within': within, 'policy': totals[0], 'reference': totals[1]}

  inputs = (
    take_rows(policy_hidden_RxLxD, batch.score_index_RxN),
    take_rows(reference_hidden_RxLxD, batch.score_index_RxN),
  )
  real_RxN = batch.score_weight_RxN > 0
  heads = (policy_head, reference_head)
  parts = _in_blocks(of_block, heads, inputs, real_RxN, chunk_size)
  logp_BxRxN, logq_BxRxN = (
    parts[name] - vocabulary.join_logsumexp(parts[name], policy_head.axis)[None]
    for name in ('policy', 'reference')
  )
  kl_BxRxN = parts['within'] + logp_BxRxN - logq_BxRxN
  kl_RxN = vocabulary.join_sum(jnp.exp(logp_BxRxN) * kl_BxRxN, policy_head.axis)
  return jnp.where(real_RxN, kl_RxN, 0.0)


def _in_blocks(
  of_block: Callable,
  heads: Sequence[types.Head],
  inputs: Sequence[types.Array],
  real_RxN: types.Array,
  chunk_size: int,
):
  """of_block(*logits_fns, span, *inputs) for each block of the vocabulary.

  A tree of f32[B, R, N], unspecified where not `real`. of_block runs over
  chunks of the inputs [R, N, ...] along N. Its intermediate values, and those
  of opening a block, are recomputed in the backward pass.
  """
  rows, scored = real_RxN.shape
  chunks = -(-scored // chunk_size)
  size = -(-scored // chunks)

  def split(x_RxNx):
    more = [(0, 0)] * (x_RxNx.ndim - 2)
    x = jnp.pad(x_RxNx, [(0, 0), (0, chunks * size - scored), *more])
    return x.reshape(rows, chunks, size, *x.shape[2:]).swapaxes(0, 1)

  def join(x_CxRxn):
    return x_CxRxn.swapaxes(0, 1).reshape(rows, -1)[:, :scored]

  inputs = [jnp.asarray(x) for x in inputs]
  split_inputs = [split(_accumulable(x, heads[0])) for x in inputs]
  split_real = split(real_RxN)

  def run(blocks, span):
    logits_fns = [_logits_fn(h, b, span) for h, b in zip(heads, blocks)]
    fn = functools.partial(of_block, *logits_fns, span)

    def body(_, chunk):
      real, *chunk = chunk
      chunk = [x.astype(like.dtype) for x, like in zip(chunk, inputs)]
      return None, _where_any(real, span, fn, *chunk)

    chunks_of = (split_real, *split_inputs)
    _, out = jax.lax.scan(jax.checkpoint(body), None, chunks_of)
    return jax.tree.map(join, out)

  if len({(h.spans_Bx2 is None, h.padded, h.axis) for h in heads}) > 1:
    raise ValueError('Both heads must have the same blocks of the vocabulary.')
  blocks, spans_Bx2 = [head.blocks for head in heads], heads[0].spans_Bx2
  if spans_Bx2 is None:
    return jax.tree.map(lambda x: x[None], run(blocks, None))
  body = jax.checkpoint(lambda _, block: (None, run(*block)))
  return jax.lax.scan(body, None, (blocks, spans_Bx2))[1]


def _logits_fn(head: types.Head, block, span):
  """hidden_..xD -> float32 logits of a block."""
  logits_fn = head.open(block)

  def masked(hidden_xD):
    logits = logits_fn(hidden_xD).astype(jnp.float32)
    return vocabulary.mask(logits, span) if head.padded else logits

  return masked


def _accumulable(x, head: types.Head):
  """`x` with gradients that add up over blocks and devices in float32."""
  if head.spans_Bx2 is None or not jnp.issubdtype(x.dtype, jnp.floating):
    return x
  x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  # Gradients are summed over devices here, once, not for each block and chunk.
  return jax.lax.pcast(x, head.axis, to='varying') if head.axis else x


def _where_any(real, span, fn, *inputs):
  """fn(*inputs) if anything is real; else zeros, without computing it."""
  # Zeros must vary over the mesh axes over which the result of `fn` varies:
  # those of the rows, and that of the vocabulary.
  differs = real if span is None else real & (span[0] < 0)
  zeros = jnp.where(differs, 0.0, 0.0).astype(jnp.float32)
  nothing = jax.tree.map(lambda x: zeros, jax.eval_shape(fn, *inputs))
  return jax.lax.cond(jnp.any(real), fn, lambda *_: nothing, *inputs)


def take_rows(x_RxLx: types.Array, index_RxI: types.Array) -> types.Array:
  """x[r, index[r, i]]: a gather within each row."""
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
