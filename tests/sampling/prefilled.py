"""A cache with prompts that have joined it, for tests of decoding."""

import functools

import jax
import jax.numpy as jnp

from dpo_jax import models
from dpo_jax.models import kv_cache
from dpo_jax.sampling import prompt_packing


def cache_of(
  params, config, prompts, *, num_samples, capacity, compute, step=0
):
  """(hidden states of the last tokens, cache, the prompt in each slot)."""
  waiting, _ = prompt_packing.shares(prompts)
  packed = prompt_packing.pack(prompts, [waiting])
  prefill = functools.partial(models.prefill, compute=compute)
  hidden, keys_values = jax.jit(prefill, static_argnums=1)(
    params, config, packed.tokens_RxL, packed.layout
  )
  cache = kv_cache.empty(
    config,
    prompts=len(prompts),
    num_samples=num_samples,
    longest_prompt=prompt_packing.capacity(max(map(len, prompts))),
    capacity=capacity,
    dtype=compute.dtype,
  )
  length_B = packed.layout.tree_length_RxT.reshape(-1)
  slot_RxT = jnp.arange(len(length_B))[None]
  slot_RxT = jnp.where(slot_RxT < len(prompts), slot_RxT, -1)
  cache = jax.jit(models.insert)(
    cache, keys_values, length_B, slot_RxT, jnp.int32(step)
  )
  return hidden[: len(prompts)], cache, packed.index_B[: len(prompts)]
