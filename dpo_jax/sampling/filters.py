"""From logits to a token: temperature, then top-k, then top-p, then a draw.

Top-k keeps the tokens that have fewer than k tokens more probable than they
are; top-p (nucleus sampling, arXiv:1904.09751) those of what top-k left whose
more probable tokens have less than p of its mass. So equally probable tokens
are all kept or all dropped, and the most probable one is always kept.
`transformers` does the same for top-k, and cuts ties of top-p by position.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dpo_jax import registry, types

# A draw picks a block of this many tokens, then a token of it.
BLOCK = 256


class Rule(NamedTuple):
  """How tokens are drawn; scalars or arrays, None is off.

  No temperature is greedy: the most probable token, the first of equal ones.
  """

  temperature: float | types.Array | None
  top_k: int | types.Array | None
  top_p: float | types.Array | None


def make_rule(
  *, temperature: float, top_k: int | None, top_p: float | None
) -> Rule:
  """A rule of checked values; temperature 0 is greedy, whatever the filters."""
  if not 0 <= temperature < math.inf:
    raise ValueError(
      f'temperature is {temperature}; expected a number from 0 (greedy) up.'
    )
  if top_k is not None:
    registry.check_at_least('top_k', top_k, 1)
  if top_p is not None and not 0 < top_p <= 1:
    raise ValueError(f'top_p is {top_p}; expected more than 0, at most 1.')
  if temperature == 0:
    return Rule(None, None, None)
  return Rule(temperature, top_k, top_p)


def draw(keys_N, logits_NxV: types.Array, rule: Rule):
  """Tokens i32[N], their log-probs under the model and under the rule, f32[N].

  The model's is that of the full softmax at temperature 1; the rule's is 0 for
  greedy. Row n depends on key and logits n alone.
  """
  if rule.temperature is None:
    tokens_N = jnp.argmax(logits_NxV, axis=-1).astype(jnp.int32)
    logp_N = _log_prob(logits_NxV, tokens_N)
    return tokens_N, logp_N, jnp.zeros_like(logp_N)
  scores_NxV = filtered(logits_NxV, rule)
  tokens_N = jax.vmap(_categorical)(keys_N, scores_NxV)
  logp_N = _log_prob(logits_NxV, tokens_N)
  return tokens_N, logp_N, _log_prob(scores_NxV, tokens_N)


def filtered(logits_NxV: types.Array, rule: Rule) -> types.Array:
  """Unnormalised log-probs under the rule, -inf for what it drops."""
  scores_NxV = logits_NxV / rule.temperature
  if rule.top_k is None and rule.top_p is None:
    return scores_NxV
  order_NxV = _order(scores_NxV)
  keep_NxV = jnp.ones(scores_NxV.shape, bool)
  if rule.top_k is not None:
    rows, vocab = scores_NxV.shape
    drop_N = jnp.full(rows, vocab - rule.top_k)
    ones = jnp.ones(scores_NxV.shape, jnp.int32)
    keep_NxV = order_NxV >= _threshold(order_NxV, ones, drop_N)[:, None]
  if rule.top_p is not None:
    mass = jnp.exp(scores_NxV - scores_NxV.max(-1, keepdims=True))
    mass = jnp.where(keep_NxV, mass, 0.0)
    drop_N = (1 - rule.top_p) * mass.sum(-1)
    keep_NxV &= order_NxV >= _threshold(order_NxV, mass, drop_N)[:, None]
  return jnp.where(keep_NxV, scores_NxV, -jnp.inf)


def _order(x: types.Array) -> types.Array:
  """Integers in the order of float32 values."""
  bits = jax.lax.bitcast_convert_type(x + 0.0, jnp.int32)  # No -0.0.
  return jnp.where(bits < 0, bits ^ jnp.int32(0x7FFFFFFF), bits)


def _threshold(order_NxV, weight_NxV, drop_N):
  """The least i32[N] such that entries up to it weigh more than `drop_N`.

  Bisection over the integers: exact, ties and all, in some 30 passes over V.
  Weighing the tail keeps float32 exact enough for top_p near 1.
  """

  def body(bounds):
    low, high = bounds
    middle = (low & high) + ((low ^ high) >> 1)  # Their mean, no overflow.
    tail = jnp.where(order_NxV <= middle[:, None], weight_NxV, 0).sum(-1)
    enough = tail > drop_N
    return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

  def unfinished(bounds):
    low, high = bounds
    return jnp.any(low + 1 < high)

  bounds = order_NxV.min(-1) - 1, order_NxV.max(-1)
  return jax.lax.while_loop(unfinished, body, bounds)[1]


def _categorical(key, scores_V):
  """A draw in two: a block by its mass, then a token of the block.

  Needs V / BLOCK + BLOCK random numbers rather than V, whose making would take
  longer than all else here.
  """
  more = -len(scores_V) % BLOCK
  scores = jnp.pad(scores_V, (0, more), constant_values=-jnp.inf)
  blocks = scores.reshape(-1, BLOCK)
  mass = jnp.exp(blocks - scores.max()).sum(-1)
  block_key, token_key = jax.random.split(key)
  block = jax.random.categorical(block_key, jnp.log(mass))
  token = jax.random.categorical(token_key, blocks[block])
  return (block * BLOCK + token).astype(jnp.int32)


def _log_prob(scores_NxV, index_N):
  """Of one entry under the softmax of each row, f32[N]."""
  shifted = scores_NxV - scores_NxV.max(-1, keepdims=True)
  picked = jnp.take_along_axis(shifted, index_N[:, None], axis=-1)[:, 0]
  return picked - jnp.log(jnp.exp(shifted).sum(-1))
