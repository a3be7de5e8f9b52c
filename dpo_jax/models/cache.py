"""Decoding token by token: keys and values kept, the prompt's only once.

Sequences continue prompts: S sequences to each of B prompts, all in step. What
they attend to lies in two places, the prompt's keys and values, shared by its
sequences, and the sequence's own; scores of both meet in one softmax.
"""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax import types
from dpo_jax.models import attention, decoder, layers
from dpo_jax.models import config as model_config


@flax.struct.dataclass
class Cache:
  """Keys and values, a tuple of one array a layer each.

  prompt_k: [B, G, d, P], prompt_v: [B, G, P, d]; valid up to `prompt_length_B`.
  own_k: [B, S, G, d, C], own_v: [B, S, G, C, d]: of the sequences' own tokens,
  C at most.
  """

  prompt_k: tuple[types.Array, ...]
  prompt_v: tuple[types.Array, ...]
  prompt_length_B: types.Array
  own_k: tuple[types.Array, ...]
  own_v: tuple[types.Array, ...]


def unstack(params: types.Params, compute: decoder.Compute) -> types.Params:
  """Parameters as `decode` reads them: `layers` is a tuple of trees.

  A scan over stacked layers copies each layer's weights in every step, a third
  of the time of a single sequence. On a CPU the layers are views of the stacked
  arrays; elsewhere they are copies. All but the norms, which stay as they are,
  are cast to the compute dtype, as they are where `forward` uses them.
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
  if device.platform != 'cpu':
    return list(x_Yx)
  return [jax.device_put(x, device, may_alias=True) for x in np.asarray(x_Yx)]


def prefill(
  params: types.Params,
  config: model_config.ModelConfig,
  tokens_1xL: types.Array,
  layout: types.Layout,
  *,
  num_samples: int,
  capacity: int,
  compute: decoder.Compute,
) -> tuple[types.Array, Cache]:
  """Hidden states of the prompts' last tokens, [B, D], and the cache.

  The prompts are the trees of one packed row, each of one branch; `params` are
  stacked. `capacity` is the number of tokens that `decode` can add to each of
  the `num_samples` sequences of a prompt.
  """
  hidden, kept = decoder.forward_keeping(
    params, config, tokens_1xL, layout, compute=compute
  )
  start_B, length_B = layout.tree_start_RxT[0], layout.tree_length_RxT[0]
  longest, _ = layout.profile[-1]
  index_BxP = jnp.minimum(
    start_B[:, None] + jnp.arange(longest)[None], tokens_1xL.shape[1] - 1
  )
  # What lies behind a prompt's end are its neighbours: finite, and masked.
  k, v = ([x[0, index_BxP] for x in part] for part in kept)
  groups, d = config.num_kv_heads, config.head_dim
  own = (len(length_B), num_samples, groups)

  def empty(*shape):
    return tuple(jnp.zeros((*own, *shape), compute.dtype) for _ in k)

  cache = Cache(
    prompt_k=tuple(x.transpose(0, 2, 3, 1) for x in k),
    prompt_v=tuple(x.transpose(0, 2, 1, 3) for x in v),
    prompt_length_B=length_B,
    own_k=empty(d, capacity),
    own_v=empty(capacity, d),
  )
  return hidden[0, start_B + length_B - 1], cache


def decode(
  params: types.Params,
  config: model_config.ModelConfig,
  tokens_BxS: types.Array,
  step: types.Array,
  cache: Cache,
  *,
  compute: decoder.Compute,
) -> tuple[types.Array, Cache]:
  """Hidden states [B, S, D] of one more token of every sequence.

  `step` is the number of own tokens that the cache holds of each sequence;
  `params` come from `unstack`.
  """
  position_BxS = jnp.broadcast_to(
    cache.prompt_length_B[:, None] + step, tokens_BxS.shape
  )
  held = cache.prompt_k[0].shape[-1] + cache.own_k[0].shape[-1]
  config = decoder.without_idle_window(config, held)
  x, ropes = decoder.embed(params, config, tokens_BxS, position_BxS, compute)
  own_k, own_v = [], []
  for i, w in enumerate(params['layers']):

    def attend(q, k, v, scale, *, i=i, **rule):
      own = _write(cache.own_k[i], cache.own_v[i], k, v, step)
      prompt = (cache.prompt_k[i], cache.prompt_v[i], cache.prompt_length_B)
      return _attend(q, prompt, (*own, step + 1), scale, **rule), own

    local = bool(config.local_layers) and config.local_layers[i]
    x, own = decoder.layer(x, w, config, ropes, attend, i, local)
    own_k.append(own[0])
    own_v.append(own[1])
  cache = cache.replace(own_k=tuple(own_k), own_v=tuple(own_v))
  return decoder.final_norm(params, config, x), cache


def _write(own_k, own_v, k_BxSxGxd, v_BxSxGxd, step):
  """Puts a token's keys and values at `step`, in place."""
  zero = jnp.zeros_like(step)
  k, v = k_BxSxGxd[..., None], v_BxSxGxd[..., None, :]
  own_k = jax.lax.dynamic_update_slice(own_k, k, (*[zero] * 4, step))
  own_v = jax.lax.dynamic_update_slice(own_v, v, (*[zero] * 3, step, zero))
  return own_k, own_v


def _attend(q_BxSxHxd, prompt, own, scale, *, softcap, window):
  """Attention of one query token a sequence, float32 inside.

  Products are written as multiply and sum: XLA's CPU backend fuses these, while
  before a batched matrix product it copies all keys and values (4 to 6 times
  slower). Queries meet the prompt in another shape than their own keys, or
  XLA would broadcast them once for both, in memory.
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

  at_prompt = jnp.arange(prompt_k.shape[-1])[None]
  at_own = jnp.arange(own_k.shape[-1])
  in_prompt = at_prompt < prompt_length_B[:, None]
  in_own = at_own < own_length
  if window is not None:
    # The query is the last of its own tokens, which follow the prompt's.
    in_own &= own_length - 1 - at_own < window.size
    query_B = prompt_length_B + own_length - 1
    in_prompt &= query_B[:, None] - at_prompt < window.size
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
  """f32[..., M]; the axes before d broadcast."""
  scores = (q_d[..., None] * k_dxM.astype(jnp.float32)).sum(-2)
  scores = layers.softcap(scores, softcap)
  return jnp.where(seen_M, scores, attention.MASKED)


def _weighted(p_M, v_Mxd):
  return (p_M[..., None] * v_Mxd.astype(jnp.float32)).sum(-2)
