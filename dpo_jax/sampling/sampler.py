"""Samples continuations of prompts: all at once, or token by token."""

import math
import operator
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax import models, registry, types
from dpo_jax.models import parallel
from dpo_jax.sampling import engine, filters, prompt_packing

FLOAT32 = models.Compute()


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
  temperature: float = 1.0,
  top_k: int | None = None,
  top_p: float | None = None,
  eos_id: int | Sequence[int] | None = None,
  compute: models.Compute = FLOAT32,
) -> Samples:
  """Draws `num_samples` continuations of every prompt, all in one batch.

  temperature: 0 is greedy. top_k, top_p: see filters.py. eos_id: tokens that
  end a sequence; None: all have `max_new_tokens`. The samples of prompt i
  depend only on the key, on i and on the prompt, up to rounding that differs
  with the batch's shape.

  If the parameters are on a mesh, its devices share the sequences (see
  models/kv_cache.py). Collective: all processes pass the same arguments and get
  all samples.

  Prompts are padded to few shapes. Each new shape compiles, as does each new
  number of prompts or samples. ValueError for prompts that are empty, have ids
  outside the vocabulary, or leave no room for the new tokens.
  """
  registry.check_at_least('num_samples', num_samples, 1)
  started = _start(
    params,
    config,
    prompts,
    key=key,
    max_new_tokens=max_new_tokens,
    num_samples=num_samples,
    rule=filters.make_rule(temperature=temperature, top_k=top_k, top_p=top_p),
    eos_id=eos_id,
    compute=compute,
  )
  state = started.advance(started.state, jnp.int32(max_new_tokens))

  def host(x_BxSx):
    return prompt_packing.unpack(started.packed, np.asarray(x_BxSx))

  return Samples(
    tokens_BxSxT=host(state.tokens_BxSxC)[..., :max_new_tokens],
    lengths_BxS=host(state.length_BxS),
    logps_BxSxT=host(state.logps_BxSxC)[..., :max_new_tokens],
    behaviour_logps_BxSxT=host(state.behaviour_logps_BxSxC)[
      ..., :max_new_tokens
    ],
  )


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
  started = _start(
    params,
    config,
    [prompt],
    key=key,
    max_new_tokens=max_new_tokens,
    num_samples=1,
    rule=filters.make_rule(temperature=temperature, top_k=top_k, top_p=top_p),
    eos_id=eos_id,
    compute=compute,
  )

  def tokens(state):
    for i in range(max_new_tokens):
      state = started.advance(state, jnp.int32(i + 1))
      yield int(state.tokens_BxSxC[0, 0, i])
      if state.ended_BxS[0, 0]:
        return

  return tokens(started.state)


class _Started(NamedTuple):
  """The state after the first token, and what continues it."""

  state: engine.State
  advance: Any  # (state, stop) -> state
  packed: prompt_packing.PackedPrompts


def _start(
  params,
  config: models.ModelConfig,
  prompts,
  *,
  key,
  max_new_tokens: int,
  num_samples: int,
  rule: filters.SamplingRule,
  eos_id: int | Sequence[int] | None,
  compute: models.Compute,
) -> _Started:
  registry.check_at_least('max_new_tokens', max_new_tokens, 1)
  given = [] if eos_id is None else np.ravel(eos_id)
  stops = tuple(operator.index(stop) for stop in given)
  check(prompts, config, max_new_tokens=max_new_tokens, eos_id=stops)
  mesh = _mesh_of(params)
  if mesh is None:
    params = jax.tree.map(_one_copy, params)
  else:
    params = jax.device_put(params, parallel.shardings(mesh, config))
  rows = 1 if mesh is None else math.prod(mesh.shape[a] for a in parallel.ROWS)
  packed = prompt_packing.pack(prompts, num_samples=num_samples, rows=rows)
  rule = jax.tree.map(jnp.asarray, rule)
  stops_K = jnp.array(stops or (-1,), jnp.int32)
  capacity = prompt_packing.capacity(max_new_tokens)
  start = engine.make_start(config, compute, packed.samples, capacity, mesh)
  state = start(
    params,
    packed.tokens_RxL,
    packed.layout,
    key,
    packed.index_B,
    packed.first_B,
    rule,
    stops_K,
  )
  weights = models.unstack(params, compute)
  advance = engine.make_advance(config, compute, mesh)
  return _Started(
    state, lambda s, stop: advance(s, weights, rule, stops_K, stop), packed
  )


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
