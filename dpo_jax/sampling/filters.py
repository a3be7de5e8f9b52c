"""Draws tokens from logits: temperature, then top-k, then top-p, then a draw.

Top-k keeps the tokens with fewer than k more probable tokens. Top-p (nucleus
sampling, arXiv:1904.09751) keeps those of the remaining tokens whose more
probable ones have less than p of the remaining mass. So equally probable tokens
are all kept or all dropped, and the most probable one is always kept.
`transformers` does the same for top-k, but breaks ties of top-p by position.

Nothing sorts the vocabulary: for 32 sequences and 49,152 logits a sort takes
300 CPU ms on an EPYC core, more than twice a step of SmolLM2-135M. The
vocabulary is the first axis, as the product that computes the logits leaves it.
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


def draw(keys_N, logits_VxN: types.Array, rule: SamplingRule):
  """(tokens i32[N], log-probs f32[N], behaviour log-probs f32[N]).

  Log-probs are under the softmax of the logits; behaviour log-probs under the
  distribution that the token was drawn from, 0 for greedy. Token n depends only
  on key n and logits n.
  """
  if rule.temperature is None:
    tokens_N = _argmax(logits_VxN)
    logp_N = _log_prob(logits_VxN, tokens_N)
    return tokens_N, logp_N, jnp.zeros_like(logp_N)
  scores_VxN = filtered(logits_VxN, rule)
  tokens_N = _categorical(keys_N, scores_VxN)
  logp_N = _log_prob(logits_VxN, tokens_N)
  return tokens_N, logp_N, _log_prob(scores_VxN, tokens_N)


def filtered(logits_VxN: types.Array, rule: SamplingRule) -> types.Array:
  """Unnormalised log-probs under the rule, -inf for dropped tokens."""
  scores_VxN = logits_VxN / rule.temperature
  if rule.top_k is None and rule.top_p is None:
    return scores_VxN
  # The M candidates' scores, and how many tokens each candidate represents.
  best_MxN, copies_MxN = scores_VxN, jnp.ones_like(scores_VxN)
  if rule.top_k is not None:
    best_MxN = _largest(scores_VxN, min(rule.top_k, len(scores_VxN)))
    least_1xN = best_MxN[-1:]
    equals_N = (scores_VxN == least_1xN).sum(0)
    left_out_N = equals_N - (best_MxN == least_1xN).sum(0)
    copies_MxN = jnp.ones_like(best_MxN).at[-1].add(left_out_N)
  if rule.top_p is not None:
    least_1xN = _nucleus(best_MxN, copies_MxN, rule.top_p)[None]
  return jnp.where(scores_VxN >= least_1xN, scores_VxN, -jnp.inf)


def _largest(scores_VxN, k: int):
  """The k largest scores of each column, f32[k, N], in falling order.

  They lie in the k blocks with the largest maxima: any other block's maximum is
  at most the least of these k. About sqrt(V / k) scores a block leave the
  fewest to sort.
  """
  size = max(1, math.isqrt(len(scores_VxN) // k))
  blocks = _blocks(scores_VxN, size)
  best_Nxk = _top_k(blocks.max(1).T, k)[1]
  candidates_kxsxN = jnp.take_along_axis(blocks, best_Nxk.T[:, None], axis=0)
  candidates = candidates_kxsxN.reshape(k * size, -1).T
  return _top_k(candidates, k)[0].T


def _top_k(x_NxM, k: int):
  # The barrier: a slice of the result would turn top_k into a full sort.
  return jax.lax.optimization_barrier(jax.lax.top_k(x_NxM, k))


def _blocks(scores_VxN, size: int):
  """f32[blocks, size, N], with -inf behind the last score."""
  more = -len(scores_VxN) % size
  scores = jnp.pad(scores_VxN, ((0, more), (0, 0)), constant_values=-jnp.inf)
  return scores.reshape(-1, size, scores.shape[1])


def _nucleus(scores_MxN, copies_MxN, top_p):
  """The least score that top-p keeps, f32[N].

  Bisects over the bits of the masses, which have the order of the masses:
  exact, also for ties, in 30 passes. It sums the tail, not the head, so that
  float32 is accurate enough for top_p near 1.
  """
  mass_MxN = jnp.exp(scores_MxN - scores_MxN.max(0, keepdims=True))
  # Computed once: a second exp, fused elsewhere, could differ in the last bit.
  mass_MxN = jax.lax.optimization_barrier(mass_MxN)
  weight_MxN = mass_MxN * copies_MxN
  drop_N = (1 - top_p) * weight_MxN.sum(0)

  def halve(_, bounds):
    low, high = bounds
    middle = (low + high) // 2
    in_tail = mass_MxN <= _from_bits(middle)[None]
    enough = jnp.where(in_tail, weight_MxN, 0.0).sum(0) > drop_N
    return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

  low = jnp.zeros(drop_N.shape, jnp.int32)
  high = jax.lax.bitcast_convert_type(jnp.ones_like(drop_N), jnp.int32)
  least_mass_N = _from_bits(jax.lax.fori_loop(0, 30, halve, (low, high))[1])
  kept_MxN = mass_MxN >= least_mass_N[None]
  return jnp.where(kept_MxN, scores_MxN, jnp.inf).min(0)


def _from_bits(bits):
  return jax.lax.bitcast_convert_type(bits, jnp.float32)


def _categorical(keys_N, scores_VxN):
  """A draw in two steps: a block by its mass, then a token of the block.

  Takes V / BLOCK + BLOCK random numbers instead of V, whose generation would
  take longer than all other work here.
  """
  blocks = _blocks(scores_VxN, BLOCK)
  mass = jnp.exp(blocks - scores_VxN.max(0)[None, None]).sum(1)
  block_keys_N, token_keys_N = jax.vmap(jax.random.split, out_axes=1)(keys_N)
  draw = jax.vmap(jax.random.categorical, (0, 1))
  block_N = draw(block_keys_N, jnp.log(mass))
  chosen = jnp.take_along_axis(blocks, block_N[None, None], axis=0)[0]
  return (block_N * BLOCK + draw(token_keys_N, chosen)).astype(jnp.int32)


def _argmax(x_VxN):
  """The first maximum's index; jnp.argmax takes 5 times longer on a CPU."""
  last = len(x_VxN) - 1
  index = jnp.arange(last + 1, dtype=jnp.int32)[:, None]
  return jnp.where(x_VxN == x_VxN.max(0)[None], index, last).min(0)


def _log_prob(scores_VxN, index_N):
  """Log-prob of one entry of each column under its softmax, f32[N]."""
  top_N = scores_VxN.max(0)
  picked_N = jnp.take_along_axis(scores_VxN, index_N[None], axis=0)[0]
  return picked_N - top_N - jnp.log(_sum(jnp.exp(scores_VxN - top_N[None])))


def _sum(x_VxN):
  """The sum over the vocabulary, in two steps.

  The first adds long vectors even if N is small: a sum over the first axis of
  [49152, 1] takes 1.4 CPU ms on an EPYC core, as long as a layer of
  SmolLM2-135M. The barrier keeps XLA from making one sum of both.
  """
  size = math.gcd(len(x_VxN), BLOCK)
  parts = x_VxN.reshape(-1, size, x_VxN.shape[1]).sum(0)
  return jax.lax.optimization_barrier(parts).sum(0)
