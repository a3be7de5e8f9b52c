"""The compiled parts of sampling: prefill, and a loop that prompts join."""

import functools

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from dpo_jax import models, types
from dpo_jax.models import kv_cache, parallel
from dpo_jax.sampling import filters


@flax.struct.dataclass
class Settings:
  """What does not change during sampling.

  stops_K: tokens that end a sequence; -1 for none. limit: the most tokens of a
  sequence, at most C.
  """

  rule: filters.SamplingRule
  stops_K: types.Array
  limit: types.Array


@flax.struct.dataclass
class State:
  """B slots for prompts, with S sequences each of at most C tokens.

  step: the number of steps of the loop so far. The tokens that a sequence has
  after step t, the first of which it draws when its prompt joins, are at the
  places `cache.joined` to t, mod C. `cache` has no keys of the last one yet.
  keys: one per sequence, only used to fold a token's number into.
  logps, behaviour_logps: as in `sampler.Samples`.
  length_BxS: the tokens of each sequence up to now or its end.
  ended_BxS: true in slots without a prompt.
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
def make_empty(
  config: models.ModelConfig,
  compute: models.Compute,
  slots: int,
  num_samples: int,
  longest_prompt: int,
  capacity: int,
  mesh: jax.sharding.Mesh | None = None,
):
  """Compiles empty(key) -> State without prompts; `key` is any."""

  @_jit(mesh)
  def empty(key):
    shape = slots, num_samples
    return State(
      step=jnp.int32(0),
      keys_BxS=jnp.broadcast_to(key, shape),
      tokens_BxSxC=jnp.zeros((*shape, capacity), jnp.int32),
      logps_BxSxC=jnp.zeros((*shape, capacity), jnp.float32),
      behaviour_logps_BxSxC=jnp.zeros((*shape, capacity), jnp.float32),
      length_BxS=jnp.zeros(shape, jnp.int32),
      ended_BxS=jnp.ones(shape, bool),
      cache=kv_cache.empty(
        config,
        prompts=slots,
        num_samples=num_samples,
        longest_prompt=longest_prompt,
        capacity=capacity,
        dtype=compute.dtype,
      ),
    )

  return empty


@functools.cache
def make_prefill(
  config: models.ModelConfig,
  compute: models.Compute,
  mesh: jax.sharding.Mesh | None = None,
):
  """Compiles `models.prefill` as a function of (params, tokens, layout)."""

  @jax.jit
  def prefill(params, tokens_RxL, layout):
    return models.prefill(
      params, config, tokens_RxL, layout, compute=compute, mesh=mesh
    )

  return prefill


@functools.cache
def make_join(
  config: models.ModelConfig, mesh: jax.sharding.Mesh | None = None
):
  """Compiles the function that puts prompts into slots.

  join(state, params, prefilled, length_N, slot_RxT, key, index_N, first_N,
  settings) -> State, with index and first of `PackedPrompts`, and the first
  tokens drawn. The key of a sequence is `key` folded with the number of its
  prompt and with its number among that prompt's samples, counted from `first`.
  The state is donated.
  """

  @_jit(mesh, donate_argnums=0)
  def join(
    state,
    params,
    prefilled,
    length_N,
    slot_RxT,
    key,
    index_N,
    first_N,
    settings,
  ):
    hidden_NxD, keys_values = prefilled
    slots, num_samples = state.ended_BxS.shape
    samples_NxS = first_N[:, None] + jnp.arange(num_samples)[None]
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    keys_NxS = jax.vmap(fold)(fold(key, index_N), samples_NxS)
    logits = _logits(params, config, hidden_NxD, mesh)
    logits = jnp.repeat(logits, num_samples, axis=1)
    drawn = _draw(keys_NxS, jnp.int32(0), logits, settings, mesh)
    slot_N = kv_cache.slot_of_all(slot_RxT, slots)
    put = functools.partial(kv_cache.put_at, slot_N=slot_N)
    state = state.replace(
      keys_BxS=put(state.keys_BxS, value=keys_NxS),
      length_BxS=put(state.length_BxS, value=0),
      ended_BxS=put(state.ended_BxS, value=False),
      cache=kv_cache.insert(
        state.cache, keys_values, length_N, slot_RxT, state.step, mesh=mesh
      ),
    )
    joins_Bx1 = put(jnp.zeros(slots, bool), value=True)[:, None]
    drawn = (
      put(jnp.zeros((slots, num_samples), x.dtype), value=x) for x in drawn
    )
    return _constrain(_add_token(state, drawn, joins_Bx1, settings), mesh)

  return join


@functools.cache
def make_advance(
  config: models.ModelConfig,
  compute: models.Compute,
  mesh: jax.sharding.Mesh | None = None,
):
  """Compiles advance(state, params, settings, stop, wanted) -> State.

  Draws tokens until step `stop`, or until all sequences have ended in `wanted`
  slots, those without a prompt included. params: from `models.unstack`. The
  state is donated.
  """

  def body(state, params, settings):
    state = _constrain(state, mesh)
    last = _at_step(state.tokens_BxSxC, state.step)
    hidden_BxSxD, cache = models.decode(
      params,
      config,
      last,
      state.step,
      state.cache,
      compute=compute,
      mesh=mesh,
    )
    hidden_NxD = hidden_BxSxD.reshape(-1, config.d_model)
    logits = _logits(params, config, hidden_NxD, mesh)
    state = state.replace(cache=cache, step=state.step + 1)
    number_Bx1 = (state.step - cache.joined_B)[:, None]
    drawn = _draw(state.keys_BxS, number_Bx1, logits, settings, mesh)
    return _constrain(_add_token(state, drawn, True, settings), mesh)

  @_jit(mesh, donate_argnums=0)
  def advance(state, params, settings, stop, wanted):
    return jax.lax.while_loop(
      lambda s: (s.step < stop) & (s.ended_BxS.all(1).sum() < wanted),
      lambda s: body(s, params, settings),
      state,
    )

  return advance


def _logits(params, config, hidden_NxD, mesh):
  """Logits [V, N] of N sequences; the unembedding stays split."""
  split_over = functools.partial(kv_cache.split_over, mesh)
  hidden_NxD = split_over(hidden_NxD, parallel.DATA, parallel.FSDP)
  logits_VxN = models.step_logits(params, config, hidden_NxD)
  return split_over(logits_VxN, parallel.TENSOR, parallel.DATA)


def _draw(keys_BxS, number, logits_VxN, settings: Settings, mesh):
  """(token, logp, behaviour_logp), each [B, S]; number: of the token drawn."""
  shape = keys_BxS.shape
  number_BxS = jnp.broadcast_to(number, shape)
  keys_N = jax.vmap(jax.random.fold_in)(
    keys_BxS.reshape(-1), number_BxS.reshape(-1)
  )
  # Brings all logits of a sequence to one device, in the order of axes that
  # takes one exchange, or else to all devices of 'tensor'.
  divides = mesh is not None and logits_VxN.shape[1] % mesh.size == 0
  last = (parallel.TENSOR, parallel.FSDP) if divides else (parallel.FSDP,)
  logits_VxN = kv_cache.split_over(
    mesh, logits_VxN, None, (parallel.DATA, *last)
  )
  drawn = filters.draw(keys_N, logits_VxN, settings.rule)
  return [kv_cache.split_over(mesh, x).reshape(shape) for x in drawn]


def _at_step(x_BxSxC, step):
  at = step % x_BxSxC.shape[2]
  return jax.lax.dynamic_index_in_dim(x_BxSxC, at, axis=2, keepdims=False)


def _add_token(state: State, drawn, chosen, settings: Settings) -> State:
  """Adds what was drawn to the chosen sequences that have not ended."""
  token, logp, behaviour_logp = drawn
  live = ~state.ended_BxS & chosen
  length_BxS = state.length_BxS + live
  ends = (token[..., None] == settings.stops_K[None, None]).any(-1)
  ends |= length_BxS >= settings.limit

  def put(into, value):
    at = state.step % into.shape[2]
    value = jnp.where(live, value, _at_step(into, state.step))
    return jax.lax.dynamic_update_index_in_dim(into, value, at, 2)

  return state.replace(
    tokens_BxSxC=put(state.tokens_BxSxC, token),
    logps_BxSxC=put(state.logps_BxSxC, logp),
    behaviour_logps_BxSxC=put(state.behaviour_logps_BxSxC, behaviour_logp),
    length_BxS=length_BxS,
    ended_BxS=state.ended_BxS | (live & ends),
  )
