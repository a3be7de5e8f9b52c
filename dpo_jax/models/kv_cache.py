"""Decoding with a key-value cache in which a prompt is stored only once.

B prompts have S sequences each, which advance by one token at a time together.
A sequence attends to its prompt's keys and values, which its prompt's sequences
share, and to those of its own tokens, in one softmax over both.

On a mesh prompts are split over 'data' and 'fsdp', key-value heads over
'tensor'.
Prefill runs like a training batch: each device gathers a layer's weights. In a
decoding step that gather would dominate, so the weights stay split and the
activations are exchanged instead: their width is split over 'fsdp' before a
product, and the partial products are summed after it.
"""

import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from dpo_jax import types
from dpo_jax.models import attention, decoder, layers, parallel
from dpo_jax.models import config as model_config


@flax.struct.dataclass
class Cache:
  """Keys and values; each field is a tuple with one array per layer.

  prompt_k: [B, G, d, P], prompt_v: [B, G, P, d]; valid up to `prompt_length_B`.
  own_k: [B, S, G, d, C], own_v: [B, S, G, C, d]: of the sequences' own tokens,
  at most C each.
  """

  prompt_k: tuple[types.Array, ...]
  prompt_v: tuple[types.Array, ...]
  prompt_length_B: types.Array
  own_k: tuple[types.Array, ...]
  own_v: tuple[types.Array, ...]


def shardings(mesh: jax.sharding.Mesh) -> Cache:
  """The shardings of a cache on a mesh: one NamedSharding per field."""
  prompt = NamedSharding(mesh, PartitionSpec(parallel.ROWS, parallel.TENSOR))
  own = PartitionSpec(parallel.ROWS, None, parallel.TENSOR)
  own = NamedSharding(mesh, own)
  replicated = NamedSharding(mesh, PartitionSpec())
  return Cache(prompt, prompt, replicated, own, own)


def split_over(mesh: jax.sharding.Mesh | None, x: types.Array, *axes):
  """Constrains `x` to be split over these mesh axes; no-op without a mesh."""
  if mesh is None:
    return x
  sharding = NamedSharding(mesh, PartitionSpec(*axes))
  return jax.lax.with_sharding_constraint(x, sharding)


def unstack(params: types.Params, compute: decoder.Compute) -> types.Params:
  """Parameters for `decode`: `layers` becomes a tuple with one tree per layer.

  A scan over stacked layers would copy each layer's weights in every step,
  which takes a third of the time for a single sequence. On a CPU the layers are
  views of the stacked arrays, elsewhere copies. All but the norms are cast to
  the compute dtype, as `forward` does. Shardings are kept.
  """

  def cast(path, x):
    is_norm = any('norm' in str(entry.key) for entry in path)
    return x if is_norm else x.astype(compute.dtype)

  params = jax.tree_util.tree_map_with_path(cast, params)
  leaves, tree = jax.tree.flatten(params['layers'])
  layers = zip(*map(_split, leaves))
  return {**params, 'layers': tuple(map(tree.unflatten, layers))}


def _split(x_Yx: types.Array) -> list[types.Array]:
  device = next(iter(x_Yx.devices()))
  is_sharded = len(x_Yx.sharding.device_set) > 1
  if device.platform != 'cpu':
    return _slices(x_Yx) if is_sharded else list(x_Yx)
  if not is_sharded:
    return _views(x_Yx, device)
  spec = PartitionSpec(*x_Yx.sharding.spec[1:])
  sharding = NamedSharding(x_Yx.sharding.mesh, spec)
  shards = [_views(x.data, x.device) for x in x_Yx.addressable_shards]
  return [
    jax.make_array_from_single_device_arrays(x_Yx.shape[1:], sharding, list(x))
    for x in zip(*shards)
  ]


def _views(x_Yx: types.Array, device) -> list[types.Array]:
  return [jax.device_put(x, device, may_alias=True) for x in np.asarray(x_Yx)]


@jax.jit
def _slices(x_Yx):
  return list(x_Yx)


def prefill(
  params: types.Params,
  config: model_config.ModelConfig,
  tokens_RxL: types.Array,
  layout: types.Layout,
  *,
  num_samples: int,
  capacity: int,
  compute: decoder.Compute,
  mesh: jax.sharding.Mesh | None = None,
) -> tuple[types.Array, Cache]:
  """Hidden states of the prompts' last tokens, [B, D], and the cache.

  params: with stacked layers. layout: each tree is a prompt without
  completions;
  all rows have equally many. num_samples: sequences of each prompt. capacity:
  the number of tokens that `decode` can add to each sequence. mesh: over which
  parameters and rows are split.
  """
  run = functools.partial(_run_prompts, config=config, compute=compute)
  if mesh is not None:
    rows = parallel.split(mesh, parallel.ROWS) or None
    heads = parallel.split(mesh, (parallel.TENSOR,)) or None
    kept = PartitionSpec(rows, heads)
    rows = PartitionSpec(rows)
    run = jax.shard_map(
      run,
      mesh=mesh,
      in_specs=(parallel.partitions(mesh, config, params), rows, rows),
      out_specs=(rows, kept, kept),
    )
  hidden_BxD, prompt_k, prompt_v = run(params, tokens_RxL, layout)
  length_B = layout.tree_length_RxT.reshape(-1)
  own = (len(length_B), num_samples, config.num_kv_heads)

  def empty(*shape):
    return tuple(
      jnp.zeros((*own, *shape), compute.dtype) for _ in range(config.num_layers)
    )

  d = config.head_dim
  cache = Cache(
    prompt_k=prompt_k,
    prompt_v=prompt_v,
    prompt_length_B=length_B,
    own_k=empty(d, capacity),
    own_v=empty(capacity, d),
  )
  return hidden_BxD, cache


def _run_prompts(params, tokens_RxL, layout, *, config, compute):
  """(hidden_BxD of last tokens, prompt_k, prompt_v) of `Cache`."""
  hidden, keys_values = decoder.forward_with_kv(
    params, config, tokens_RxL, layout, compute=compute
  )
  rows, length = tokens_RxL.shape
  row_start_Rx1 = jnp.arange(rows)[:, None] * length
  start_B = (row_start_Rx1 + layout.tree_start_RxT).reshape(-1)
  length_B = layout.tree_length_RxT.reshape(-1)
  longest, _ = layout.profile[-1]
  index_BxP = jnp.minimum(
    start_B[:, None] + jnp.arange(longest)[None], rows * length - 1
  )

  def flat(x):
    return x.reshape(rows * length, *x.shape[2:])

  # Entries beyond a prompt's end are other tokens': finite, and masked later.
  k, v = ([flat(x)[index_BxP] for x in part] for part in keys_values)
  return (
    flat(hidden)[start_B + length_B - 1],
    tuple(x.transpose(0, 2, 3, 1) for x in k),
    tuple(x.transpose(0, 2, 1, 3) for x in v),
  )


def decode(
  params: types.Params,
  config: model_config.ModelConfig,
  tokens_BxS: types.Array,
  step: types.Array,
  cache: Cache,
  *,
  compute: decoder.Compute,
  mesh: jax.sharding.Mesh | None = None,
) -> tuple[types.Array, Cache]:
  """Hidden states [B, S, D] of one more token of every sequence, and the cache.

  params: from `unstack`. step: the number of each sequence's own tokens in the
  cache. mesh: over which parameters and cache are split.
  """
  position_BxS = jnp.broadcast_to(
    cache.prompt_length_B[:, None] + step, tokens_BxS.shape
  )
  held = cache.prompt_k[0].shape[-1] + cache.own_k[0].shape[-1]
  config = decoder.without_idle_window(config, held)
  x, ropes = decoder.embed(params, config, tokens_BxS, position_BxS, compute)
  sequences = (parallel.DATA, None)  # How B and S are split in the layers.
  heads = (None, parallel.TENSOR)
  own_k, own_v = [], []
  for i, w in enumerate(params['layers']):

    def attend(q, k, v, scale, *, i=i, **rule):
      q, k, v = (split_over(mesh, x, parallel.ROWS, *heads) for x in (q, k, v))
      own = _write(cache.own_k[i], cache.own_v[i], k, v, step)
      prompt = (cache.prompt_k[i], cache.prompt_v[i], cache.prompt_length_B)
      out = _attend(q, prompt, (*own, step + 1), scale, **rule)
      out = split_over(mesh, out, parallel.ROWS, *heads)
      return split_over(mesh, out, parallel.DATA, *heads), own

    local = bool(config.local_layers) and config.local_layers[i]
    x = split_over(mesh, x, *sequences, parallel.FSDP)
    x, own = decoder.layer(x, w, config, ropes, attend, i, local)
    own_k.append(own[0])
    own_v.append(own[1])
  x = split_over(mesh, x, *sequences, parallel.FSDP)
  cache = cache.replace(own_k=tuple(own_k), own_v=tuple(own_v))
  return decoder.final_norm(params, config, x), cache


def _write(own_k, own_v, k_BxSxGxd, v_BxSxGxd, step):
  """Writes a token's keys and values at index `step`, in place."""
  zero = jnp.zeros_like(step)
  k, v = k_BxSxGxd[..., None], v_BxSxGxd[..., None, :]
  own_k = jax.lax.dynamic_update_slice(own_k, k, (*[zero] * 4, step))
  own_v = jax.lax.dynamic_update_slice(own_v, v, (*[zero] * 3, step, zero))
  return own_k, own_v


def _attend(q_BxSxHxd, prompt, own, scale, *, softcap, window):
  """Attention of one query token per sequence, float32 inside.

  prompt, own: (keys, values, length) of the prompt and of the own tokens.

  Products are written as multiply and sum: XLA's CPU backend fuses these, while
  it copies all keys and values before a batched matrix product (4 to 6 times
  slower). Queries have different shapes for the prompt and for own keys, else
  XLA would materialise one broadcast of the queries for both.
  """
  batch, samples, heads, d = q_BxSxHxd.shape
  prompt_k, prompt_v, prompt_length_B = prompt
  own_k, own_v, own_length = own
  groups = prompt_k.shape[1]
  q = q_BxSxHxd.reshape(batch, samples, groups, heads // groups, d)
  q = q.astype(jnp.float32) * scale

  def merge(x):  # [B, S, G, Q, ...] -> [B, G, S * Q, ...]
    x = jnp.moveaxis(x, 1, 2)
    return x.reshape(batch, groups, -1, *x.shape[4:])

  def split(x):
    x = x.reshape(batch, groups, samples, -1, *x.shape[3:])
    return jnp.moveaxis(x, 2, 1)

  prompt_index = jnp.arange(prompt_k.shape[-1])[None]
  own_index = jnp.arange(own_k.shape[-1])
  in_prompt = prompt_index < prompt_length_B[:, None]
  in_own = own_index < own_length
  if window is not None:
    # The query is the last own token; own tokens follow the prompt's.
    in_own &= own_length - 1 - own_index < window.size
    query_B = prompt_length_B + own_length - 1
    in_prompt &= query_B[:, None] - prompt_index < window.size
  prompt_s = _scores(
    merge(q), prompt_k[:, :, None], in_prompt[:, None, None], softcap
  )
  own_s = _scores(
    q, own_k[:, :, :, None], in_own[None, None, None, None], softcap
  )
  top = jnp.maximum(split(prompt_s.max(-1)), own_s.max(-1))
  prompt_p = jnp.exp(prompt_s - merge(top)[..., None])
  own_p = jnp.exp(own_s - top[..., None])
  total = split(prompt_p.sum(-1)) + own_p.sum(-1)
  out = _weighted(own_p, own_v[:, :, :, None])
  out = out + split(_weighted(prompt_p, prompt_v[:, :, None]))
  out = (out / total[..., None]).astype(q_BxSxHxd.dtype)
  return out.reshape(q_BxSxHxd.shape)


def _scores(q_d, k_dxM, seen_M, softcap):
  """Masked scores, f32[..., M]; the axes before d are broadcast."""
  scores = (q_d[..., None] * k_dxM.astype(jnp.float32)).sum(-2)
  scores = layers.softcap(scores, softcap)
  return jnp.where(seen_M, scores, attention.MASKED)


def _weighted(p_M, v_Mxd):
  return (p_M[..., None] * v_Mxd.astype(jnp.float32)).sum(-2)
