"""Draws tokens from logits: temperature, then top-k, then top-p, then a draw.

Top-k keeps the tokens with fewer than k more probable tokens. Top-p (nucleus
sampling, arXiv:1904.09751) keeps those of the remaining tokens whose more
probable ones have less than p of the remaining mass. So equally probable tokens
are all kept or all dropped, and the most probable one is always kept.
`transformers` does the same for top-k, but breaks ties of top-p by position.

Nothing sorts the vocabulary: for 32 rows of 49,152 logits a sort takes 300 CPU
ms on an EPYC core, as long as the model takes to compute the logits.
"""

import math

import flax.struct
import jax
import jax.numpy as jnp

from dpo_jax import registry, types

# A draw picks a block of this many tokens, then a token of the block.
BLOCK = 256


@flax.struct.dataclass
class SamplingRule:
  """Temperature, top-k and top-p; None is off. `top_k` is static.

  temperature: None is greedy: the most probable token, of equal ones the first.
  """

  temperature: float | types.Array | None
  top_k: int | None = flax.struct.field(pytree_node=False)
  top_p: float | types.Array | None


def make_rule(
  *, temperature: float, top_k: int | None, top_p: float | None
) -> SamplingRule:
  """Checks the values; temperature 0 is greedy and ignores the filters."""
  if not 0 <= temperature < math.inf:
    raise ValueError(
      f'temperature is {temperature}; expected a number from 0 (greedy) up.'
    )
  if top_k is not None:
    registry.check_at_least('top_k', top_k, 1)
  if top_p is not None and not 0 < top_p <= 1:
    raise ValueError(f'top_p is {top_p}; expected more than 0, at most 1.')
  if temperature == 0:
    return SamplingRule(None, None, None)
  return SamplingRule(temperature, top_k, top_p)


def draw(keys_N, logits_NxV: types.Array, rule: SamplingRule):
  """(tokens i32[N], log-probs f32[N], behaviour log-probs f32[N]).

  Log-probs are under the softmax of the logits; behaviour log-probs under the
  distribution that the token was drawn from, 0 for greedy. Row n depends only
  on key n and logits n.
  """
  if rule.temperature is None:
    tokens_N = _argmax(logits_NxV)
    logp_N = _log_prob(logits_NxV, tokens_N)
    return tokens_N, logp_N, jnp.zeros_like(logp_N)
  scores_NxV = filtered(logits_NxV, rule)
  tokens_N = jax.vmap(_categorical)(keys_N, scores_NxV)
  logp_N = _log_prob(logits_NxV, tokens_N)
  return tokens_N, logp_N, _log_prob(scores_NxV, tokens_N)


def filtered(logits_NxV: types.Array, rule: SamplingRule) -> types.Array:
  """Unnormalised log-probs under the rule, -inf for dropped tokens."""
  scores_NxV = logits_NxV / rule.temperature
  if rule.top_k is None and rule.top_p is None:
    return scores_NxV
  # The M candidates' scores, and how many tokens each candidate represents.
  best_NxM, copies_NxM = scores_NxV, jnp.ones_like(scores_NxV)
  if rule.top_k is not None:
    k = min(rule.top_k, scores_NxV.shape[-1])
    # The barrier: a slice of the result would turn top_k into a full sort.
    best_NxM = jax.lax.optimization_barrier(jax.lax.top_k(scores_NxV, k)[0])
    least_Nx1 = best_NxM[:, -1:]
    equals_N = (scores_NxV == least_Nx1).sum(-1)
    left_out_N = equals_N - (best_NxM == least_Nx1).sum(-1)
    copies_NxM = jnp.ones_like(best_NxM).at[:, -1].add(left_out_N)
  if rule.top_p is not None:
    least_Nx1 = _nucleus(best_NxM, copies_NxM, rule.top_p)[:, None]
  return jnp.where(scores_NxV >= least_Nx1, scores_NxV, -jnp.inf)


def _nucleus(scores_NxM, copies_NxM, top_p):
  """The least score that top-p keeps, f32[N].

  Bisects over the bits of the masses, which have the order of the masses:
  exact, also for ties, in 30 passes. It sums the tail, not the head, so that
  float32 is accurate enough for top_p near 1.
  """
  mass_NxM = jnp.exp(scores_NxM - scores_NxM.max(-1, keepdims=True))
  # Computed once: a second exp, fused elsewhere, could differ in the last bit.
  mass_NxM = jax.lax.optimization_barrier(mass_NxM)
  weight_NxM = mass_NxM * copies_NxM
  drop_N = (1 - top_p) * weight_NxM.sum(-1)

  def halve(_, bounds):
    low, high = bounds
    middle = (low + high) // 2
    in_tail = mass_NxM <= _from_bits(middle)[:, None]
    enough = jnp.where(in_tail, weight_NxM, 0.0).sum(-1) > drop_N
    return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

  low = jnp.zeros(drop_N.shape, jnp.int32)
  high = jax.lax.bitcast_convert_type(jnp.ones_like(drop_N), jnp.int32)
  least_mass_N = _from_bits(jax.lax.fori_loop(0, 30, halve, (low, high))[1])
  kept_NxM = mass_NxM >= least_mass_N[:, None]
  return jnp.where(kept_NxM, scores_NxM, jnp.inf).min(-1)


def _from_bits(bits):
  return jax.lax.bitcast_convert_type(bits, jnp.float32)


def _categorical(key, scores_V):
  """A draw in two steps: a block by its mass, then a token of the block.

  Takes V / BLOCK + BLOCK random numbers instead of V, whose generation would
  take longer than all other work here.
  """
  more = -len(scores_V) % BLOCK
  scores = jnp.pad(scores_V, (0, more), constant_values=-jnp.inf)
  blocks = scores.reshape(-1, BLOCK)
  mass = jnp.exp(blocks - scores.max()).sum(-1)
  block_key, token_key = jax.random.split(key)
  block = jax.random.categorical(block_key, jnp.log(mass))
  token = jax.random.categorical(token_key, blocks[block])
  return (block * BLOCK + token).astype(jnp.int32)


def _argmax(x_NxV):
  """The first maximum's index; jnp.argmax takes 5 times longer on a CPU."""
  last = x_NxV.shape[-1] - 1
  is_top = x_NxV == x_NxV.max(-1, keepdims=True)
  index = jnp.arange(last + 1, dtype=jnp.int32)[None]
  return jnp.where(is_top, index, last).min(-1)


def _log_prob(scores_NxV, index_N):
  """Log-prob of one entry of each row under the row's softmax, f32[N]."""
  shifted = scores_NxV - scores_NxV.max(-1, keepdims=True)
  picked = jnp.take_along_axis(shifted, index_N[:, None], axis=-1)[:, 0]
  return picked - jnp.log(jnp.exp(shifted).sum(-1))
