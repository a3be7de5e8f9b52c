"""GPT-NeoX and Pythia: q, k and v are one tensor, whose rows go by head.

Its rows are q, k and v of the first head, then those of the second, and so on.
"""

import math

import numpy as np

from dpo_jax.models import config as model_config
from dpo_jax.weights import gpt2, mapping, rotary

_Field, _TensorMap = mapping.Field, mapping.TensorMap

_CONSTANT = {'norm': 'layer', 'gated_mlp': False, 'mlp_bias': True}


def _split(x: np.ndarray, config: model_config.ModelConfig):
  heads = x.reshape(config.num_heads, 3, config.head_dim, *x.shape[1:])
  return [heads[:, j].reshape(-1, *x.shape[1:]) for j in range(3)]


def _join(config: model_config.ModelConfig, *qkv) -> np.ndarray:
  heads = [
    x.reshape(config.num_heads, config.head_dim, *x.shape[1:]) for x in qkv
  ]
  return np.stack(heads, axis=1).reshape(-1, *qkv[0].shape[1:])


_QKV_KERNEL = mapping.Op(
  lambda x, config: tuple(part.T for part in _split(x, config)),
  lambda config, *qkv: _join(config, *(part.T for part in qkv)),
  lambda *shapes: (sum(s[1] for s in shapes), shapes[0][0]),
)
_QKV_BIAS = mapping.Op(
  lambda x, config: tuple(_split(x, config)),
  _join,
  lambda *shapes: (sum(s[0] for s in shapes),),
)


def _complete(fields: dict, values: dict, reader) -> dict:
  fields = fields | gpt2.sizes(fields) | _CONSTANT
  rope = rotary.collect(values)
  share = rope.get('partial_rotary_factor', values.get('rotary_pct', 0.25))
  rotated = int(fields['head_dim'] * share)
  return {
    **fields,
    **rotary.read(rope, values.get('rotary_emb_base', 10000.0), partial=True),
    'rotary_dim': None if rotated == fields['head_dim'] else rotated,
    'attention_out_bias': fields['attention_bias'],
  }


def _extra(config: model_config.ModelConfig) -> dict:
  rotated = config.rotary_dim or config.head_dim
  share = rotated / config.head_dim
  # Readers truncate head_dim * share: a product just below `rotated` would
  # lose a dimension.
  if int(config.head_dim * share) < rotated:
    share = math.nextafter(share, 1)
  return {
    'rotary_pct': share,
    'rotary_emb_base': config.rope_theta,
    'rope_scaling': rotary.write_scaling(config.rope_scaling),
  }


_HF = mapping.Format(
  fields={
    'vocab_size': _Field('vocab_size'),
    'num_layers': _Field('num_hidden_layers'),
    'd_model': _Field('hidden_size'),
    'num_heads': _Field('num_attention_heads'),
    'd_ff': _Field('intermediate_size'),
    'max_positions': _Field('max_position_embeddings', 2048),
    'norm_eps': _Field('layer_norm_eps', 1e-5),
    'activation': _Field('hidden_act', 'gelu', mapping.ACTIVATIONS),
    'attention_bias': _Field('attention_bias', True),
    'residual': _Field(
      'use_parallel_residual', True, {True: 'parallel', False: 'sequential'}
    ),
    'tie_embeddings': _Field('tie_word_embeddings', False),
  },
  also_read=(*rotary.READS, 'rotary_pct', 'rotary_emb_base'),
  complete=_complete,
  extra=_extra,
  prefix='gpt_neox.',
  ignored=(
    r'(gpt_neox\.)?layers\.\d+\.attention\.(bias|masked_bias)',
    r'(gpt_neox\.)?layers\.\d+\.attention\.rotary_emb\.inv_freq',
  ),
  tensor_maps=(
    _TensorMap('gpt_neox.embed_in.weight', ('embed/tokens',)),
    *mapping.module_maps(
      {
        'layers/attention/qkv': 'gpt_neox.layers.{i}.attention.query_key_value',
        'layers/attention_norm': 'gpt_neox.layers.{i}.input_layernorm',
        'layers/attention/o': 'gpt_neox.layers.{i}.attention.dense',
        'layers/mlp_norm': 'gpt_neox.layers.{i}.post_attention_layernorm',
        'layers/mlp/up': 'gpt_neox.layers.{i}.mlp.dense_h_to_4h',
        'layers/mlp/down': 'gpt_neox.layers.{i}.mlp.dense_4h_to_h',
        'final_norm': 'gpt_neox.final_layer_norm',
      },
      {
        'layers/attention/qkv/kernel': _QKV_KERNEL,
        'layers/attention/qkv/bias': _QKV_BIAS,
      },
    ),
    _TensorMap('embed_out.weight', ('unembed/kernel',)),
  ),
)

FAMILY = mapping.Family(
  'gpt_neox', 'GPTNeoXForCausalLM', 'GPTNeoXForSequenceClassification', _HF
)
