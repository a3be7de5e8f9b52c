"""The compiled parts of sampling: one prefill, then a loop of single tokens."""

import functools

import flax.struct
import jax
import jax.numpy as jnp

from dpo_jax import models, types
from dpo_jax.sampling import filters


@flax.struct.dataclass
class State:
  """S sequences to each of B prompts, after `step` tokens of capacity C.

  tokens: the first stop, or 0 without one, from `length_BxS` on; log-probs are
  0 there.
  keys: those of the sequences, never used but to fold a step into.
  """

  step: types.Array
  keys_BxS: types.Array
  tokens_BxSxC: types.Array
  logps_BxSxC: types.Array
  rule_logps_BxSxC: types.Array
  length_BxS: types.Array
  ended_BxS: types.Array
  cache: models.Cache


@functools.cache
def make_start(
  config: models.ModelConfig,
  compute: models.Compute,
  num_samples: int,
  capacity: int,
):
  """(params, tokens_1xL, layout, key, index_B, rule, stops_K) -> State.

  Runs the prompts and draws the first token of every sequence. Sequence s of
  the prompt that the caller calls `index` has the key folded with both.
  """

  @jax.jit
  def start(params, tokens_1xL, layout, key, index_B, rule, stops_K):
    hidden_BxD, cache = models.prefill(
      params,
      config,
      tokens_1xL,
      layout,
      num_samples=num_samples,
      capacity=capacity,
      compute=compute,
    )
    samples = jnp.arange(num_samples)
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    keys_BxS = jax.vmap(fold, (0, None))(fold(key, index_B), samples)
    shape = (*keys_BxS.shape, capacity)
    state = State(
      step=jnp.int32(0),
      keys_BxS=keys_BxS,
      tokens_BxSxC=jnp.full(shape, jnp.maximum(stops_K[0], 0), jnp.int32),
      logps_BxSxC=jnp.zeros(shape, jnp.float32),
      rule_logps_BxSxC=jnp.zeros(shape, jnp.float32),
      length_BxS=jnp.zeros(keys_BxS.shape, jnp.int32),
      ended_BxS=jnp.zeros(keys_BxS.shape, bool),
      cache=cache,
    )
    logits_BxV = models.step_logits(params, config, hidden_BxD)
    logits_NxV = jnp.repeat(logits_BxV, num_samples, axis=0)
    return _add_token(state, logits_NxV, rule, stops_K)

  return start


@functools.cache
def make_advance(config: models.ModelConfig, compute: models.Compute):
  """(state, params, rule, stops_K, stop) -> State, the state donated.

  `params` come from `models.unstack`. Adds tokens until `stop` are drawn, or
  all sequences ended.
  """

  def body(state, params, rule, stops_K):
    last = jax.lax.dynamic_index_in_dim(
      state.tokens_BxSxC, state.step - 1, axis=2, keepdims=False
    )
    hidden_BxSxD, cache = models.decode(
      params, config, last, state.step - 1, state.cache, compute=compute
    )
    hidden_NxD = hidden_BxSxD.reshape(-1, config.d_model)
    logits_NxV = models.step_logits(params, config, hidden_NxD)
    return _add_token(state.replace(cache=cache), logits_NxV, rule, stops_K)

  @functools.partial(jax.jit, donate_argnums=0)
  def advance(state, params, rule, stops_K, stop):
    return jax.lax.while_loop(
      lambda s: (s.step < stop) & ~jnp.all(s.ended_BxS),
      lambda s: body(s, params, rule, stops_K),
      state,
    )

  return advance


def _add_token(state: State, logits_NxV, rule, stops_K) -> State:
  shape = state.length_BxS.shape
  fold = jax.vmap(jax.random.fold_in, (0, None))
  keys_N = fold(state.keys_BxS.reshape(-1), state.step)
  drawn = filters.draw(keys_N, logits_NxV, rule)
  token, logp, rule_logp = (x.reshape(shape) for x in drawn)
  live = ~state.ended_BxS
  ends = (token[..., None] == stops_K[None, None]).any(-1)

  def put(into, value):
    old = jax.lax.dynamic_index_in_dim(into, state.step, 2, keepdims=False)
    value = jnp.where(live, value, old)
    return jax.lax.dynamic_update_index_in_dim(into, value, state.step, 2)

  return state.replace(
    step=state.step + 1,
    tokens_BxSxC=put(state.tokens_BxSxC, token),
    logps_BxSxC=put(state.logps_BxSxC, logp),
    rule_logps_BxSxC=put(state.rule_logps_BxSxC, rule_logp),
    length_BxS=state.length_BxS + live,
    ended_BxS=state.ended_BxS | ends,
  )
