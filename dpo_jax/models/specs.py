"""The table of a decoder's parameters: shapes, axes, counts, initialisation."""

import math

import jax
import jax.numpy as jnp
from flax import traverse_util

from dpo_jax import types
from dpo_jax.models import config as model_config

Spec = types.Spec


def param_specs(config: model_config.ModelConfig) -> dict:
  """The parameter tree with a `Spec` at each leaf.

  Layers are stacked on a leading axis. Kernels are [..., in, out]; `unembed` is
  [V, D] like the token embedding. Biases, further norms and learned positions
  exist only if the config asks for them. A scalar head has `score` instead of
  `unembed`.
  """
  c = config
  queries, keys = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
  out_stddev = 0.02 / math.sqrt(2 * c.num_layers)

  def dense(inputs, outputs, *, bias, stddev=0.02):
    (d_in, in_axis), (d_out, out_axis) = inputs, outputs
    shape, axes = (c.num_layers, d_in, d_out), ('layers', in_axis, out_axis)
    spec = {'kernel': Spec(shape, axes, stddev=stddev)}
    if bias:
      spec['bias'] = Spec((c.num_layers, d_out), ('layers', out_axis), 'zeros')
    return spec

  def norm(*, width=c.d_model, axis='embed', layers=True):
    shape = (c.num_layers, width) if layers else (width,)
    axes = ('layers', axis) if layers else (axis,)
    start = 'zeros' if c.norm == 'rms_offset' else 'ones'
    spec = {'scale': Spec(shape, axes, start)}
    if c.norm == 'layer':
      spec['bias'] = Spec(shape, axes, 'zeros')
    return spec

  model, heads = (c.d_model, 'embed'), (queries, 'heads')
  kv, mlp = (keys, 'kv_heads'), (c.d_ff, 'mlp')
  embed = {'tokens': Spec((c.vocab_size, c.d_model), ('vocab', 'embed'))}
  if c.positions == 'learned':
    shape = (c.max_positions, c.d_model)
    embed['positions'] = Spec(shape, ('positions', 'embed'))
  mlp_specs = {
    'up': dense(model, mlp, bias=c.mlp_bias),
    'down': dense(mlp, model, bias=c.mlp_bias, stddev=out_stddev),
  }
  if c.gated_mlp:
    mlp_specs['gate'] = dense(model, mlp, bias=c.mlp_bias)
  attention = {
    'q': dense(model, heads, bias=c.attention_bias),
    'k': dense(model, kv, bias=c.attention_bias),
    'v': dense(model, kv, bias=c.attention_bias),
    'o': dense(heads, model, bias=c.attention_out_bias, stddev=out_stddev),
  }
  if c.qk_norm:
    per_head = dict(width=c.head_dim, axis='head_dim')
    attention |= {'q_norm': norm(**per_head), 'k_norm': norm(**per_head)}
  # `init` folds a leaf's index into the key: leaves that only some models have
  # come last, so that the others' values do not depend on them.
  stack = {'attention_norm': norm(), 'attention': attention}
  if c.residual != 'parallel_one_norm':
    stack['mlp_norm'] = norm()
  stack['mlp'] = mlp_specs
  if c.post_norms:
    stack |= {'attention_post_norm': norm(), 'mlp_post_norm': norm()}
  specs = {'embed': embed, 'layers': stack, 'final_norm': norm(layers=False)}
  if c.head == 'scalar':
    return {**specs, 'score': score(c)}
  unembed = _unembed(c)
  return {**specs, 'unembed': unembed} if unembed else specs


def _unembed(config: model_config.ModelConfig) -> dict:
  spec = {}
  if not config.tie_embeddings:
    shape = (config.vocab_size, config.d_model)
    spec['kernel'] = Spec(shape, ('vocab', 'embed'))
  if config.unembed_bias:
    spec['bias'] = Spec((config.vocab_size,), ('vocab',), 'zeros')
  return spec


def score(config: model_config.ModelConfig) -> dict:
  """The parameters of a scalar head on this model; no mesh splits them."""
  return {'kernel': Spec((config.d_model, 1), ('hidden', 'score'))}


def flat_specs(config: model_config.ModelConfig) -> dict[str, Spec]:
  """The table as {'layers/attention/q/kernel': Spec, ...}."""
  return traverse_util.flatten_dict(param_specs(config), sep='/')


def num_params(config: model_config.ModelConfig) -> int:
  """The number of parameters; a tied embedding counts once."""
  return sum(math.prod(s.shape) for s in flat_specs(config).values())


def init(key, config: model_config.ModelConfig, dtype=jnp.float32):
  """Random parameters: normal kernels and embeddings, as `Spec.init` says."""
  specs = traverse_util.flatten_dict(param_specs(config))

  def leaf(i, spec):
    if spec.init == 'normal':
      noise = jax.random.normal(jax.random.fold_in(key, i), spec.shape, dtype)
      return spec.stddev * noise
    return {'zeros': jnp.zeros, 'ones': jnp.ones}[spec.init](spec.shape, dtype)

  leaves = {path: leaf(i, s) for i, (path, s) in enumerate(specs.items())}
  return traverse_util.unflatten_dict(leaves)
