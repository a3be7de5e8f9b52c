"""The decoder: tokens and their layout in, hidden states and logits out."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from dpo_jax import registry, types
from dpo_jax.models import attention, layers
from dpo_jax.models import config as model_config

REMAT = {
  'none': lambda fn: fn,
  'full': jax.checkpoint,
  'dots': functools.partial(
    jax.checkpoint,
    policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  ),
}
# The attention blocks of the single tree that a plain sequence is.
PLAIN_BLOCK, MAX_PLAIN_BLOCKS = 128, 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compute:
  """How a model is run; no field changes what it computes.

  dtype: of activations and of the weights where they are used. remat: what the
  backward pass recomputes of each layer: 'none', 'dots' (all but matmuls with
  weights) or 'full'. attention: a key of `attention.BACKENDS`.
  """

  dtype: str = 'float32'
  remat: str = 'none'
  attention: str = 'tree'

  def __post_init__(self):
    registry.lookup({'float32': 0, 'bfloat16': 0}, self.dtype, 'compute dtype')
    registry.lookup(REMAT, self.remat, 'remat policy')
    registry.lookup(attention.BACKENDS, self.attention, 'attention backend')


def plain_layout(batch: int, length: int) -> types.Layout:
  """One sequence per row, filling it."""
  block = max(PLAIN_BLOCK, -(-length // MAX_PLAIN_BLOCKS))
  ones = jnp.ones((batch, length), jnp.int32)
  return types.Layout(
    segment_RxL=ones,
    branch_RxL=jnp.zeros_like(ones),
    position_RxL=jnp.broadcast_to(jnp.arange(length)[None], ones.shape),
    tree_start_RxT=jnp.zeros((batch, 1), jnp.int32),
    tree_length_RxT=jnp.full((batch, 1), length, jnp.int32),
    shared=False,
    profile=tuple(
      (min(begin + block, length), 1) for begin in range(0, length, block)
    ),
  )


def forward(
  params: types.Params,
  config: model_config.ModelConfig,
  tokens_RxL: types.Array,
  layout: types.Layout | None = None,
  *,
  compute: Compute = Compute(),
) -> types.Array:
  """Hidden states after the last norm, [R, L, D] in the compute dtype.

  Without a layout each row is one sequence. What comes out at padding is finite
  and otherwise unspecified.
  """
  layout = layout or plain_layout(*tokens_RxL.shape)
  backend = attention.BACKENDS[compute.attention]
  view = backend.prepare(layout)
  norm = functools.partial(layers.NORMS[config.norm], eps=config.norm_eps)
  x = params['embed']['tokens'][tokens_RxL].astype(compute.dtype)
  angles = None
  if config.positions == 'learned':
    at = params['embed']['positions'][layout.position_RxL]
    x = x + at.astype(compute.dtype)
  else:
    angles = layers.rope_angles(config, layout.position_RxL)

  def layer(x, layer_input):
    w, index = layer_input
    y = norm(x, w['attention_norm'])
    x = x + _attention(y, w['attention'], config, angles, backend, view, index)
    y = norm(x, w['mlp_norm'])
    return x + layers.mlp(y, w['mlp'], activation=config.activation), None

  indices = jnp.arange(config.num_layers)
  x, _ = jax.lax.scan(
    REMAT[compute.remat](layer), x, (params['layers'], indices)
  )
  return norm(x, params['final_norm'])


def _attention(x, w, config, angles, backend, view, layer_index):
  def heads(w, count):
    y = layers.dense(x, w)
    return y.reshape(*y.shape[:-1], count, config.head_dim)

  q = heads(w['q'], config.num_heads)
  k = heads(w['k'], config.num_kv_heads)
  v = heads(w['v'], config.num_kv_heads)
  if angles is not None:
    q, k = layers.rotate(q, angles), layers.rotate(k, angles)
  scale = config.attention_scale
  scale = config.head_dim**-0.5 if scale is None else scale
  if config.attention_scale_by_layer:
    scale = scale / (layer_index + 1)
  out = backend.attend(q, k, v, view, scale)
  return layers.dense(out.reshape(*out.shape[:-2], -1), w['o'])


def logits(params, config: model_config.ModelConfig, hidden) -> types.Array:
  """Float32 logits [..., V] of hidden states [..., D]."""
  tied = config.tie_embeddings
  kernel = params['embed']['tokens'] if tied else params['unembed']['kernel']
  return jnp.einsum(
    '...d,vd->...v',
    hidden,
    kernel.astype(hidden.dtype),
    preferred_element_type=jnp.float32,
  )


def policy(
  config: model_config.ModelConfig,
  compute: Compute = Compute(),
) -> types.Policy:
  """The decoder as the pair of functions that methods train."""

  def hidden(params, tokens_RxL, layout):
    return forward(params, config, tokens_RxL, layout, compute=compute)

  return types.Policy(hidden, lambda params, h: logits(params, config, h))
