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
  return _run(params, config, tokens_RxL, layout, compute, keep=False)[0]


def forward_keeping(
  params: types.Params,
  config: model_config.ModelConfig,
  tokens_RxL: types.Array,
  layout: types.Layout,
  *,
  compute: Compute,
) -> tuple[types.Array, tuple[types.Array, types.Array]]:
  """`forward`, and the keys and values of all layers, each [Y, R, L, G, d]."""
  return _run(params, config, tokens_RxL, layout, compute, keep=True)


def _run(params, config, tokens_RxL, layout, compute, *, keep):
  backend = attention.BACKENDS[compute.attention]
  view = backend.prepare(layout)
  x, angles = embed(params, config, tokens_RxL, layout.position_RxL, compute)

  def attend(q, k, v, scale):
    return backend.attend(q, k, v, view, scale), ((k, v) if keep else None)

  def body(x, layer_input):
    w, index = layer_input
    return layer(x, w, config, angles, attend, index)

  indices = jnp.arange(config.num_layers)
  x, kept = jax.lax.scan(
    REMAT[compute.remat](body), x, (params['layers'], indices)
  )
  return final_norm(params, config, x), kept


def embed(params, config, tokens_RxL, position_RxL, compute: Compute):
  """The first layer's input [R, L, D], and rotary angles where there are."""
  x = params['embed']['tokens'][tokens_RxL].astype(compute.dtype)
  if config.positions == 'learned':
    at = params['embed']['positions'][position_RxL]
    return x + at.astype(compute.dtype), None
  return x, layers.rope_angles(config, position_RxL)


def layer(x_RxLxD, w, config, angles, attend, index):
  """One layer; `attend(q, k, v, scale)` returns its output and what to keep.

  q[R, L, H, d], k and v[R, L, G, d] are rotated already; `index` is the layer's
  place. Returns x and what `attend` kept.
  """
  norm = functools.partial(layers.NORMS[config.norm], eps=config.norm_eps)
  y = norm(x_RxLxD, w['attention_norm'])
  y, kept = _attention(y, w['attention'], config, angles, attend, index)
  x = x_RxLxD + y
  y = norm(x, w['mlp_norm'])
  return x + layers.mlp(y, w['mlp'], activation=config.activation), kept


def final_norm(params, config, x):
  """What `logits` expects, of the last layer's output."""
  return layers.NORMS[config.norm](x, params['final_norm'], eps=config.norm_eps)


def _attention(x, w, config, angles, attend, layer_index):
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
  out, kept = attend(q, k, v, scale)
  return layers.dense(out.reshape(*out.shape[:-2], -1), w['o']), kept


def logits(params, config: model_config.ModelConfig, hidden) -> types.Array:
  """Float32 logits [..., V] of hidden states [..., D]."""
  return jnp.einsum(
    '...d,vd->...v',
    hidden,
    _unembedding(params, config).astype(hidden.dtype),
    preferred_element_type=jnp.float32,
  )


def step_logits(params, config: model_config.ModelConfig, hidden_NxD):
  """`logits` of one position of each of N sequences, for decoding.

  Up to 64 rows XLA's CPU backend takes a third less time for the product the
  other way round (21 against 31 CPU ms for 32 rows on an EPYC core), as long as
  the barrier keeps it from being turned back.
  """
  if len(hidden_NxD) > 64:
    return logits(params, config, hidden_NxD)
  logits_VxN = jnp.einsum(
    'vd,nd->vn',
    _unembedding(params, config).astype(hidden_NxD.dtype),
    hidden_NxD,
    preferred_element_type=jnp.float32,
  )
  return jax.lax.optimization_barrier(logits_VxN).T


def _unembedding(params, config):
  tied = config.tie_embeddings
  return params['embed']['tokens'] if tied else params['unembed']['kernel']


def policy(
  config: model_config.ModelConfig,
  compute: Compute = Compute(),
) -> types.Policy:
  """The decoder as the pair of functions that methods train."""

  def hidden(params, tokens_RxL, layout):
    return forward(params, config, tokens_RxL, layout, compute=compute)

  return types.Policy(hidden, lambda params, h: logits(params, config, h))
