"""Samples continuations of prompts: all at once, or token by token."""

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax import models, registry, types
from dpo_jax.models import parallel
from dpo_jax.sampling import engine, filters, prompt_packing, schedule

FLOAT32 = models.Compute()
MOST_STEPS = np.iinfo(np.int32).max


class Samples(NamedTuple):
  """S continuations of each of B prompts, at most T tokens long.

  tokens: i32; after a sequence's end, the first of `eos_id`, or 0 without one.
  lengths: i32, the token that ended the sequence included.
  logps: f32, each token's log-prob under the model, at temperature 1 and
  without
  filters, as a scoring pass gives. behaviour_logps: f32, under the distribution
  that the token was drawn from; 0 for greedy. Both are 0 after the end.
  """

  tokens_BxSxT: np.ndarray
  lengths_BxS: np.ndarray
  logps_BxSxT: np.ndarray
  behaviour_logps_BxSxT: np.ndarray


def sample(
  params: types.Params,
  config: models.ModelConfig,
  prompts: Sequence[Sequence[int]],
  *,
  key: types.Array,
  max_new_tokens: int,
  num_samples: int = 1,
  batch_size: int | None = None,
  temperature: float = 1.0,
  top_k: int | None = None,
  top_p: float | None = None,
  eos_id: int | Sequence[int] | None = None,
  compute: models.Compute = FLOAT32,
  progress: Callable[[int], object] | None = None,
) -> Samples:
  """Draws `num_samples` continuations of every prompt.

  batch_size: the most prompts that are decoded together; when all samples of
  some have ended, others take their places. None: all are, from the start.
  temperature: 0 is greedy. top_k, top_p: see filters.py. eos_id: tokens that
  end a sequence; none: all have `max_new_tokens`. The samples of prompt i
  depend only on the key, on i and on the prompt, up to rounding that differs
  with the batch's shape. progress(n) is called when n more samples are done.

  If the parameters are on a mesh, its devices share the sequences (see
  models/kv_cache.py). Collective: all processes pass the same arguments and get
  all samples.

  Prompts and batches are padded to few shapes, each of which compiles.
  ValueError for prompts that are empty, have ids outside the vocabulary, or
  leave no room for the new tokens.
  """
  registry.check_at_least('num_samples', num_samples, 1)
  if batch_size is not None:
    registry.check_at_least('batch_size', batch_size, 1)
  loop = _make_loop(
    params,
    config,
    prompts,
    key=key,
    max_new_tokens=max_new_tokens,
    num_samples=num_samples,
    batch_size=batch_size,
    rule=filters.make_rule(temperature=temperature, top_k=top_k, top_p=top_p),
    eos_id=eos_id,
    compute=compute,
  )
  shape = (len(prompts), num_samples, max_new_tokens)
  fill = [*_stop_ids(eos_id), 0][0]
  samples = Samples(
    np.full(shape, fill, np.int32),
    np.zeros(shape[:2], np.int32),
    np.zeros(shape, np.float32),
    np.zeros(shape, np.float32),
  )
  state = loop.empty
  while not loop.schedule.is_done():
    state = loop.join(state)
    state = loop.advance(state, wanted=loop.schedule.wanted())
    ended_B = np.asarray(state.ended_BxS).all(1)
    taken = loop.schedule.take_out(ended_B)
    _copy(state, taken, samples)
    if progress is not None:
      progress(len(taken) * state.ended_BxS.shape[1])
  return samples


def _copy(state: engine.State, taken, samples: Samples) -> None:
  """Copies what has ended into the samples."""
  length_BxS, joined_B, *sources = map(
    np.asarray,
    (
      state.length_BxS,
      state.cache.joined_B,
      state.tokens_BxSxC,
      state.logps_BxSxC,
      state.behaviour_logps_BxSxC,
    ),
  )
  targets = (
    samples.tokens_BxSxT,
    samples.logps_BxSxT,
    samples.behaviour_logps_BxSxT,
  )
  for slot, (prompt, first) in taken:
    for s, n in enumerate(length_BxS[slot]):
      samples.lengths_BxS[prompt, first + s] = n
      places = (joined_B[slot] + np.arange(n)) % sources[0].shape[2]
      for source, target in zip(sources, targets):
        target[prompt, first + s, :n] = source[slot, s, places]


def stream(
  params: types.Params,
  config: models.ModelConfig,
  prompt: Sequence[int],
  *,
  key: types.Array,
  max_new_tokens: int,
  temperature: float = 1.0,
  top_k: int | None = None,
  top_p: float | None = None,
  eos_id: int | Sequence[int] | None = None,
  compute: models.Compute = FLOAT32,
) -> Iterator[int]:
  """Yields the tokens that `sample` draws for this one prompt, one by one.

  The last is one of `eos_id` unless `max_new_tokens` is reached first. Errors
  are raised by the call, not by the first iteration.
  """
  loop = _make_loop(
    params,
    config,
    [prompt],
    key=key,
    max_new_tokens=max_new_tokens,
    num_samples=1,
    batch_size=None,
    rule=filters.make_rule(temperature=temperature, top_k=top_k, top_p=top_p),
    eos_id=eos_id,
    compute=compute,
  )

  def tokens(state):
    state = loop.join(state)
    for i in range(max_new_tokens):
      state = loop.advance(state, stop=i)
      yield int(state.tokens_BxSxC[0, 0, i])
      if state.ended_BxS[0, 0]:
        return

  return tokens(loop.empty)


class _Loop(NamedTuple):
  """The decoding loop: where prompts are, and what is compiled.

  empty: the state without prompts. join_group: (state, packed, slot_RxT) ->
  state. advance_to: (state, stop, wanted) -> state; see engine.py.
  """

  schedule: schedule.Schedule
  prompts: Sequence[Sequence[int]]
  empty: engine.State
  join_group: Callable
  advance_to: Callable

  def join(self, state: engine.State) -> engine.State:
    """The state with as many waiting prompts as have room."""
    while (group := self.schedule.next_group()) is not None:
      shares, slot_RxT = group
      packed = prompt_packing.pack(self.prompts, shares)
      state = self.join_group(state, packed, slot_RxT)
    return state

  def advance(self, state: engine.State, *, stop=MOST_STEPS, wanted=None):
    """The state at step `stop`, or earlier if `wanted` slots are free."""
    wanted = self.schedule.slots if wanted is None else wanted
    return self.advance_to(state, jnp.int32(stop), jnp.int32(wanted))


def _make_loop(
  params,
  config: models.ModelConfig,
  prompts,
  *,
  key,
  max_new_tokens: int,
  num_samples: int,
  batch_size: int | None,
  rule: filters.SamplingRule,
  eos_id: int | Sequence[int] | None,
  compute: models.Compute,
) -> _Loop:
  registry.check_at_least('max_new_tokens', max_new_tokens, 1)
  stops = _stop_ids(eos_id)
  check(prompts, config, max_new_tokens=max_new_tokens, eos_id=stops)
  mesh = _mesh_of(params)
  if mesh is None:
    params = jax.tree.map(_one_copy, params)
  else:
    params = jax.device_put(params, parallel.shardings(mesh, config))
  rows = 1 if mesh is None else math.prod(mesh.shape[a] for a in parallel.ROWS)
  waiting, samples = prompt_packing.shares(
    prompts, num_samples=num_samples, rows=rows
  )
  places = schedule.Schedule(
    prompts,
    waiting,
    rows=rows,
    slots_per_row=_slots_per_row(len(waiting), len(prompts), batch_size, rows),
  )
  settings = engine.Settings(
    rule=jax.tree.map(jnp.asarray, rule),
    stops_K=jnp.array(stops or (-1,), jnp.int32),
    limit=jnp.int32(max_new_tokens),
  )
  make_empty = engine.make_empty(
    config,
    compute,
    places.slots,
    samples,
    prompt_packing.capacity(max(map(len, prompts))),
    prompt_packing.capacity(max_new_tokens),
    mesh,
  )
  empty = make_empty(key)
  if mesh is None:
    empty = jax.device_put(empty, *jax.tree.leaves(params)[0].devices())
  weights = models.unstack(
    params, compute, num_sequences=places.slots * samples
  )
  prefill = engine.make_prefill(config, compute, mesh)
  join = engine.make_join(config, mesh)
  advance = engine.make_advance(config, compute, mesh)

  def join_group(state, packed, slot_RxT):
    return join(
      state,
      params,
      prefill(params, packed.tokens_RxL, packed.layout),
      packed.layout.tree_length_RxT.reshape(-1),
      slot_RxT,
      key,
      packed.index_B,
      packed.first_B,
      settings,
    )

  def advance_to(state, stop, wanted):
    return advance(state, weights, settings, stop, wanted)

  return _Loop(places, prompts, empty, join_group, advance_to)


def _stop_ids(eos_id: int | Sequence[int] | None) -> tuple[int, ...]:
  given = () if eos_id is None else np.ravel(eos_id)
  return tuple(map(operator.index, given))


def _slots_per_row(
  num_shares: int, num_prompts: int, batch_size: int | None, rows: int
) -> int:
  """The slots that the prompts need, rounded up to one of few numbers."""
  needed = -(-num_shares // rows)
  if batch_size is not None:
    most = -(-batch_size * (num_shares // num_prompts) // rows)
    if most < needed:
      return most
  return prompt_packing.capacity(needed, parts=8, least=1)


def _mesh_of(params: types.Params) -> jax.sharding.Mesh | None:
  """The parameters' mesh, if it has the axes of parallel.py; else None."""
  mesh = getattr(jax.tree.leaves(params)[0].sharding, 'mesh', None)
  if mesh is None or mesh.size == 1 or mesh.axis_names != parallel.AXES:
    return None
  return mesh


def _one_copy(x: types.Array) -> types.Array:
  """The copy of a replicated array on its first device.

  It is committed to that device, as the loop's results are: an uncommitted
  state would make the loop compile a second time.
  """
  if not x.is_fully_replicated:
    raise ValueError(
      f'Parameters are split as {x.sharding}; expected a mesh of the axes '
      f'{", ".join(parallel.AXES)}.'
    )
  x = x.addressable_data(0)
  return jax.device_put(x, x.sharding)


def check(
  prompts: Sequence[Sequence[int]],
  config: models.ModelConfig,
  *,
  max_new_tokens: int,
  eos_id: Sequence[int] = (),
) -> None:
  """Raises the ValueErrors of `sample`; needs no parameters."""
  if not len(prompts):
    raise ValueError('There are no prompts; expected one or more.')
  for i, prompt in enumerate(prompts):
    if not len(prompt):
      raise ValueError(
        f'Prompt {i} has no tokens; expected one or more, such as BOS.'
      )
    low, high = min(prompt), max(prompt)
    if low < 0 or high >= config.vocab_size:
      bad = low if low < 0 else high
      raise ValueError(
        f'Prompt {i} has the token id {bad}, but the model has a vocabulary of '
        f'{config.vocab_size}.'
      )
    if len(prompt) + max_new_tokens > config.max_positions:
      raise ValueError(
        f'Prompt {i} has {len(prompt)} tokens; with max_new_tokens '
        f'{max_new_tokens} it may become {len(prompt) + max_new_tokens} long, '
        f'but the model has {config.max_positions} positions.'
      )
  for stop in eos_id:
    if not 0 <= stop < config.vocab_size:
      raise ValueError(
        f'eos_id is {stop}, but the model has a vocabulary of '
        f'{config.vocab_size}.'
      )
