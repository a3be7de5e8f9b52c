"""The decoder: from tokens and their layout to hidden states and logits."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from dpo_jax import registry, types
from dpo_jax.models import (
  attention,
  cudnn_attention,
  heads,
  layers,
  parallel,
  specs,
)
from dpo_jax.models import config as model_config

REMAT = {
  'none': parallel.without_gathers,
  'full': jax.checkpoint,
  'dots': functools.partial(
    jax.checkpoint,
    policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  ),
}
BACKENDS = {**attention.BACKENDS, 'cudnn': cudnn_attention.BACKEND}
# Attention blocks of a plain sequence: minimum length, maximum number.
PLAIN_BLOCK, MAX_PLAIN_BLOCKS = 128, 8
# The most blocks of the embedding; each block takes a pass over all tokens.
MAX_LOOKUPS = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compute:
  """How a model is computed; no field changes the function up to rounding.

  dtype: of activations, and of the weights in each operation.
  remat: what the backward pass recomputes of each layer: 'none', 'dots' (all
  but matmuls with weights) or 'full'.
  attention: 'tree' or 'dense' (attention.py), or 'cudnn' (cudnn_attention.py).
  """

  dtype: str = 'float32'
  remat: str = 'none'
  attention: str = 'tree'

  def __post_init__(self):
    registry.lookup({'float32': 0, 'bfloat16': 0}, self.dtype, 'compute dtype')
    registry.lookup(REMAT, self.remat, 'remat policy')
    registry.lookup(BACKENDS, self.attention, 'attention backend')


def plain_layout(batch: int, length: int) -> types.Layout:
  """The layout of rows that each hold one sequence of full length."""
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
  """Hidden states after the final norm, [R, L, D] in the compute dtype.

  layout: None: each row is one sequence. Values at padding are finite and
  otherwise unspecified.
  """
  layout = layout or plain_layout(*tokens_RxL.shape)
  return _run(params, config, tokens_RxL, layout, compute, keep_kv=False)[0]


def forward_with_kv(
  params: types.Params,
  config: model_config.ModelConfig,
  tokens_RxL: types.Array,
  layout: types.Layout,
  *,
  compute: Compute,
) -> tuple[types.Array, tuple[types.Array, types.Array]]:
  """(hidden states as of `forward`, (keys, values)), both [Y, R, L, G, d]."""
  return _run(params, config, tokens_RxL, layout, compute, keep_kv=True)


def _run(params, config, tokens_RxL, layout, compute, *, keep_kv):
  backend = BACKENDS[compute.attention]
  view = backend.prepare(layout)
  longest, _ = layout.profile[-1]
  config = without_idle_window(config, longest)
  x, ropes = embed(params, config, tokens_RxL, layout.position_RxL, compute)

  def attend(q, k, v, scale, **rule):
    out = backend.attend(q, k, v, view, scale, **rule)
    return out, ((k, v) if keep_kv else None)

  flags = set(config.local_layers) or {False}
  local_Y = jnp.array(config.local_layers) if len(flags) > 1 else None

  table = specs.param_specs(config)['layers']

  def body(x, layer_input):
    w, index, local = layer_input
    w = parallel.gather_tree(w, table, compute.dtype)
    (local,) = flags if local is None else (local,)
    return layer(x, w, config, ropes, attend, index, local)

  layer_inputs = params['layers'], jnp.arange(config.num_layers), local_Y
  x, kept = jax.lax.scan(REMAT[compute.remat](body), x, layer_inputs)
  return final_norm(params, config, x), kept


def without_idle_window(config: model_config.ModelConfig, longest: int):
  """`config` without windows that have no effect up to `longest` positions."""
  if config.window is not None and config.window >= longest:
    config = dataclasses.replace(config, window=None)
  if config.window is None and config.local_rope_theta is None:
    config = dataclasses.replace(config, local_layers=())
  return config


def embed(params, config, tokens_RxL, position_RxL, compute: Compute):
  """The first layer's input [R, L, D], and the angles of `layers.ropes`."""
  w, table = params['embed'], specs.param_specs(config)['embed']
  num_blocks = min(_num_blocks(config), MAX_LOOKUPS)
  x = parallel.lookup(w['tokens'], tokens_RxL, compute.dtype, num_blocks)
  if config.embedding_scale is not None:
    x = x * jnp.asarray(config.embedding_scale, x.dtype)
  if config.positions == 'learned':
    positions = parallel.gather_tree(
      w['positions'], table['positions'], compute.dtype
    )
    return x + positions[position_RxL].astype(compute.dtype), None
  return x, layers.ropes(config, position_RxL)


def layer(x_RxLxD, w, config, ropes, attend, index, local):
  """(output, kept) of one layer, where attend returns (output, kept).

  attend(q, k, v, scale, softcap, window): q[R, L, H, d] and k[R, L, G, d] are
  rotated, v[R, L, G, d]; for the others see `attention.Backend`.
  index: of the layer, from 0. local: whether it has the sliding window.
  """
  norm = functools.partial(layers.NORMS[config.norm], eps=config.norm_eps)
  read = norm(x_RxLxD, w['attention_norm'])
  angles = None if ropes is None else layers.rope_of_layer(ropes, local)
  window = None
  if config.window is not None and local is not False:
    window = attention.Window(config.window, local)
  attend = functools.partial(
    attend, softcap=config.attention_softcap, window=window
  )
  y, kept = _attention(read, w['attention'], config, angles, attend, index)
  if config.post_norms:
    y = norm(y, w['attention_post_norm'])
  x = x_RxLxD + y
  if config.residual == 'sequential':
    read = norm(x, w['mlp_norm'])
  elif config.residual == 'parallel':
    read = norm(x_RxLxD, w['mlp_norm'])
  y = layers.mlp(read, w['mlp'], activation=config.activation)
  if config.post_norms:
    y = norm(y, w['mlp_post_norm'])
  return x + y, kept


def final_norm(params, config, x):
  """The hidden states that `logits` takes, from the last layer's output."""
  table = specs.param_specs(config)['final_norm']
  w = parallel.gather_tree(params['final_norm'], table, x.dtype)
  return layers.NORMS[config.norm](x, w, eps=config.norm_eps)


def _attention(x, w, config, angles, attend, layer_index):
  x = parallel.split_inputs(x)

  def heads(w):  # All heads, or this device's.
    y = layers.dense(x, w)
    return y.reshape(*y.shape[:-1], -1, config.head_dim)

  q, k, v = (heads(w[name]) for name in 'qkv')
  if config.qk_norm:
    norm = functools.partial(layers.NORMS[config.norm], eps=config.norm_eps)
    q, k = norm(q, w['q_norm']), norm(k, w['k_norm'])
  if angles is not None:
    q, k = layers.rotate(q, angles), layers.rotate(k, angles)
  scale = config.attention_scale
  scale = config.head_dim**-0.5 if scale is None else scale
  if config.attention_scale_by_layer:
    scale = scale / (layer_index + 1)
  out, kept = attend(q, k, v, scale)
  out = out.reshape(*out.shape[:-2], -1)
  return layers.dense_from_parts(out, w['o']), kept


def logits(params, config: model_config.ModelConfig, hidden) -> types.Array:
  """Float32 logits [..., V] of hidden states [..., D]."""
  products = jnp.einsum(
    '...d,vd->...v',
    hidden,
    _unembedding(params, config).astype(hidden.dtype),
    preferred_element_type=jnp.float32,
  )
  return _finish(products, params, config, hidden.dtype)


def step_logits(params, config: model_config.ModelConfig, hidden_NxD):
  """`logits` for one position of each of N sequences, f32[V, N].

  With few rows XLA's CPU backend takes a third less time for this product than
  for the transposed one (21 against 31 CPU ms for 32 on an EPYC core), as do
  draws from its result.
  """
  products_VxN = jnp.einsum(
    'vd,nd->vn',
    _unembedding(params, config).astype(hidden_NxD.dtype),
    hidden_NxD,
    preferred_element_type=jnp.float32,
  )
  return _finish(products_VxN, params, config, hidden_NxD.dtype, axis=0)


def _unembedding(params, config):
  _check_has_logits(config)
  tied = config.tie_embeddings
  return params['embed']['tokens'] if tied else params['unembed']['kernel']


def _check_has_logits(config):
  if config.head != 'logits':
    raise ValueError(
      'The model has a scalar head, so it is a reward or value model; logits '
      'take a language model.'
    )


def _finish(products, params, config, dtype, axis=-1):
  """Logits, from products of hidden states with the unembedding."""
  if config.unembed_bias:
    bias = params['unembed']['bias'].astype(dtype).astype(jnp.float32)
    bias = bias[:, None] if axis == 0 else bias
    products = products + jnp.broadcast_to(bias, products.shape)
  return layers.softcap(products, config.logit_softcap)


def head(
  params: types.Params,
  config: model_config.ModelConfig,
  compute: Compute,
) -> types.Head:
  """The `types.Head` that computes the logits of `forward`'s hidden states.

  If the unembedding is split over devices, it has blocks of the vocabulary, and
  `open` gathers a block. ValueError for a model with a scalar head.
  """
  _check_has_logits(config)
  table = specs.param_specs(config)
  parts = {'unembed': table['unembed']} if 'unembed' in table else {}
  if config.tie_embeddings:
    parts['embed'] = {'tokens': table['embed']['tokens']}
  w = {name: {k: params[name][k] for k in part} for name, part in parts.items()}

  def opened(w):
    w = parallel.gather_tree(w, parts, compute.dtype)
    return functools.partial(logits, w, config)

  if not parallel.vocabulary_is_split():
    return types.Head.whole(opened(w))
  blocks = parallel.vocabulary_blocks(w, _num_blocks(config))
  return types.Head(opened, *blocks, parallel.vocabulary_axis())


def _num_blocks(config) -> int:
  """Vocabulary blocks, none of them larger than a layer's largest matrix."""
  return -(-config.vocab_size // config.d_ff)


def policy(
  config: model_config.ModelConfig,
  compute: Compute = Compute(),
  mesh: jax.sharding.Mesh | None = None,
) -> types.Policy:
  """The decoder as a `types.Policy`.

  mesh: over which parameters are split by `parallel.partitions`; None: they are
  not split.
  """

  def hidden(params, tokens_RxL, layout):
    return forward(params, config, tokens_RxL, layout, compute=compute)

  whole = types.Policy(
    hidden,
    head=lambda params: head(params, config, compute),
    scalar=lambda params, hidden: heads.scalar(params, config, hidden),
  )
  if mesh is None or mesh.size == 1:
    return whole
  return whole._replace(over_rows=parallel.over_rows(mesh, config))
