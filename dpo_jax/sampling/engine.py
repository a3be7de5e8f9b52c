"""The compiled parts of sampling: one prefill, then a loop over tokens."""

import functools

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from dpo_jax import models, types
from dpo_jax.models import kv_cache, parallel
from dpo_jax.sampling import filters


@flax.struct.dataclass
class State:
  """B prompts with S sequences each, after `step` of at most C tokens.

  keys: one per sequence, only used to fold the step into.
  tokens: from `length_BxS` on the first stop token, or 0 if there is none.
  logps, behaviour_logps: as in `sampler.Samples`; 0 from `length_BxS` on.
  """

  step: types.Array
  keys_BxS: types.Array
  tokens_BxSxC: types.Array
  logps_BxSxC: types.Array
  behaviour_logps_BxSxC: types.Array
  length_BxS: types.Array
  ended_BxS: types.Array
  cache: models.Cache


def shardings(mesh: jax.sharding.Mesh) -> State:
  """The shardings of a state: the cache is split, the rest replicated."""
  replicated = NamedSharding(mesh, PartitionSpec())
  return State(*[replicated] * 7, cache=kv_cache.shardings(mesh))


def _jit(mesh, **options):
  if mesh is not None:
    options['out_shardings'] = shardings(mesh)
  return functools.partial(jax.jit, **options)


def _constrain(state: State, mesh) -> State:
  if mesh is None:
    return state
  return jax.lax.with_sharding_constraint(state, shardings(mesh))


@functools.cache
def make_start(
  config: models.ModelConfig,
  compute: models.Compute,
  num_samples: int,
  capacity: int,
  mesh: jax.sharding.Mesh | None = None,
):
  """Compiles the function that prefills and draws the first tokens.

  start(params, tokens_RxL, layout, key, index_B, first_B, rule, stops_K) ->
  State, with index_B and first_B of `PackedPrompts`. A sequence's key is `key`
  folded with the index of its prompt and with its number among that prompt's
  samples, counted from `first`. Sequences with index -1 have ended from the
  start.
  """

  @_jit(mesh)
  def start(params, tokens_RxL, layout, key, index_B, first_B, rule, stops_K):
    hidden_BxD, cache = models.prefill(
      params,
      config,
      tokens_RxL,
      layout,
      num_samples=num_samples,
      capacity=capacity,
      compute=compute,
      mesh=mesh,
    )
    samples_BxS = first_B[:, None] + jnp.arange(num_samples)[None]
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    prompt_keys_B = fold(key, index_B)
    keys_BxS = jax.vmap(fold)(prompt_keys_B, samples_BxS)
    shape = (*keys_BxS.shape, capacity)
    idle_BxS = jnp.broadcast_to(index_B[:, None] < 0, keys_BxS.shape)
    state = State(
      step=jnp.int32(0),
      keys_BxS=keys_BxS,
      tokens_BxSxC=jnp.full(shape, jnp.maximum(stops_K[0], 0), jnp.int32),
      logps_BxSxC=jnp.zeros(shape, jnp.float32),
      behaviour_logps_BxSxC=jnp.zeros(shape, jnp.float32),
      length_BxS=jnp.zeros(keys_BxS.shape, jnp.int32),
      ended_BxS=idle_BxS,
      cache=cache,
    )
    logits_BxV = _logits(params, config, hidden_BxD, mesh)
    logits_NxV = jnp.repeat(logits_BxV, num_samples, axis=0)
    return _add_token(state, logits_NxV, rule, stops_K, mesh)

  return start


@functools.cache
def make_advance(
  config: models.ModelConfig,
  compute: models.Compute,
  mesh: jax.sharding.Mesh | None = None,
):
  """Compiles advance(state, params, rule, stops_K, stop) -> State.

  Draws tokens until there are `stop`, or all sequences have ended. params: from
  `models.unstack`. The state is donated.
  """

  def body(state, params, rule, stops_K):
    state = _constrain(state, mesh)
    last = jax.lax.dynamic_index_in_dim(
      state.tokens_BxSxC, state.step - 1, axis=2, keepdims=False
    )
    hidden_BxSxD, cache = models.decode(
      params,
      config,
      last,
      state.step - 1,
      state.cache,
      compute=compute,
      mesh=mesh,
    )
    hidden_NxD = hidden_BxSxD.reshape(-1, config.d_model)
    logits_NxV = _logits(params, config, hidden_NxD, mesh)
    state = state.replace(cache=cache)
    return _add_token(state, logits_NxV, rule, stops_K, mesh)

  @_jit(mesh, donate_argnums=0)
  def advance(state, params, rule, stops_K, stop):
    return jax.lax.while_loop(
      lambda s: (s.step < stop) & ~jnp.all(s.ended_BxS),
      lambda s: body(s, params, rule, stops_K),
      state,
    )

  return advance


def _logits(params, config, hidden_NxD, mesh):
  """Logits of one token of each sequence; the unembedding stays split."""
  split_over = functools.partial(kv_cache.split_over, mesh)
  hidden_NxD = split_over(hidden_NxD, parallel.DATA, parallel.FSDP)
  logits_NxV = models.step_logits(params, config, hidden_NxD)
  return split_over(logits_NxV, parallel.DATA, parallel.TENSOR)


def _add_token(state: State, logits_NxV, rule, stops_K, mesh) -> State:
  """Draws the next token of every sequence that has not ended."""
  shape = state.length_BxS.shape
  fold = jax.vmap(jax.random.fold_in, (0, None))
  keys_N = fold(state.keys_BxS.reshape(-1), state.step)
  # Brings all logits of a sequence to one device, in the order of axes that
  # takes one exchange, or else to all devices of 'tensor'.
  divides = mesh is not None and len(logits_NxV) % mesh.size == 0
  last = (parallel.TENSOR, parallel.FSDP) if divides else (parallel.FSDP,)
  logits_NxV = kv_cache.split_over(mesh, logits_NxV, (parallel.DATA, *last))
  drawn = filters.draw(keys_N, logits_NxV, rule)
  token, logp, behaviour_logp = (
    kv_cache.split_over(mesh, x).reshape(shape) for x in drawn
  )
  live = ~state.ended_BxS
  ends = (token[..., None] == stops_K[None, None]).any(-1)

  def put(into, value):
    old = jax.lax.dynamic_index_in_dim(into, state.step, 2, keepdims=False)
    value = jnp.where(live, value, old)
    return jax.lax.dynamic_update_index_in_dim(into, value, state.step, 2)

  state = state.replace(
    step=state.step + 1,
    tokens_BxSxC=put(state.tokens_BxSxC, token),
    logps_BxSxC=put(state.logps_BxSxC, logp),
    behaviour_logps_BxSxC=put(state.behaviour_logps_BxSxC, behaviour_logp),
    length_BxS=state.length_BxS + live,
    ended_BxS=state.ended_BxS | ends,
  )
  return _constrain(state, mesh)
