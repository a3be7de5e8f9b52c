"""Attention of one token of each sequence to its prompt and its own tokens."""

import jax.numpy as jnp

from dpo_jax.models import attention, layers


def attend(q_BxSxHxd, prompt, own, step, scale, *, softcap, window):
  """[B, S, H, d], float32 inside.

  prompt, own: (keys, values, length_B) of `kv_cache.Cache`, of the prompts and
  of the sequences' own tokens, the query included, which `step` added.
  """
  batch, samples, heads, d = q_BxSxHxd.shape
  prompt_k, prompt_v, prompt_length_B = prompt
  own_k, own_v, own_length_B = own
  groups = prompt_k.shape[1]
  q = q_BxSxHxd.reshape(batch, samples, groups, heads // groups, d)
  q = q.astype(jnp.float32) * scale

  def merge(x):  # [B, S, G, Q, ...] -> [B, G, S * Q, ...]
    x = jnp.moveaxis(x, 1, 2)
    return x.reshape(batch, groups, -1, *x.shape[4:])

  def split(x):
    x = x.reshape(batch, groups, samples, -1, *x.shape[3:])
    return jnp.moveaxis(x, 2, 1)

  in_prompt = _seen_of_prompt(
    prompt_k.shape[-1], prompt_length_B, own_length_B, window
  )
  age = (step - jnp.arange(own_k.shape[-1])) % own_k.shape[-1]
  in_own = age[None] < own_length_B[:, None]
  prompt_s = jnp.einsum(
    'bgqd,bgdm->bgqm', merge(q), prompt_k.astype(jnp.float32)
  )
  prompt_s = _masked(prompt_s, in_prompt[:, None, None], softcap)
  own_s = _products(q, own_k.astype(jnp.float32))
  own_s = _masked(own_s, in_own[:, None, None, None], softcap)
  top = jnp.maximum(split(prompt_s.max(-1)), own_s.max(-1))
  prompt_p = jnp.exp(prompt_s - merge(top)[..., None])
  own_p = jnp.exp(own_s - top[..., None])
  total = split(prompt_p.sum(-1)) + own_p.sum(-1)
  out = _products(own_p, own_v.astype(jnp.float32))
  out = out + split(
    jnp.einsum('bgqm,bgmd->bgqd', prompt_p, prompt_v.astype(jnp.float32))
  )
  out = (out / total[..., None]).astype(q_BxSxHxd.dtype)
  return out.reshape(q_BxSxHxd.shape)


def _products(x_BxSxGxQxI, y_BxSxGxIxJ):
  """Products with own keys or values, [B, S, G, Q, J].

  They are written as multiply and sum: XLA's CPU backend fuses these, while it
  copies all own keys and values before a batched matrix product. With an axis Q
  of length 1 its fusion is 60 times slower than without.
  """
  if x_BxSxGxQxI.shape[3] == 1:
    return (x_BxSxGxQxI[:, :, :, 0, :, None] * y_BxSxGxIxJ).sum(
      3, keepdims=True
    )
  return (x_BxSxGxQxI[..., None] * y_BxSxGxIxJ[:, :, :, None]).sum(-2)


def _masked(scores, seen, softcap):
  return jnp.where(seen, layers.softcap(scores, softcap), attention.MASKED)


def _seen_of_prompt(held: int, prompt_length_B, own_length_B, window):
  """bool[B, held]: which of the keys that are held of a prompt are seen.

  Own keys need no window: no more of them are held than it is large.
  """
  index = jnp.arange(held)[None]
  seen = index < prompt_length_B[:, None]
  if window is None:
    return seen
  position = jnp.maximum(prompt_length_B[:, None] - held, 0) + index
  query_B = prompt_length_B + own_length_B - 1
  return seen & (query_B[:, None] - position < window.size)
