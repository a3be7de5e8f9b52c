"""Llama and what is stored like it: SmolLM2, TinyLlama, Llama 1 to 3.

GGUF stores the rows of Q and K interleaved, (0, d/2, 1, d/2 + 1, ...) of each
head, for a rotation of neighbours; ours, as Hugging Face's, rotates halves.
"""

import math

import numpy as np

from dpo_jax.models import config as model_config
from dpo_jax.weights import tables

_Field, _Rule = tables.Field, tables.Rule
_TRANSPOSE = tables.TRANSPOSE


def _complete(fields: dict, values: dict, source) -> dict:
  tables.require(
    values,
    {
      'partial_rotary_factor': (None, 1, 1.0),
      'quantization_config': (None,),
      'sliding_window': (None,),
    },
  )
  if fields['num_kv_heads'] is None:
    fields['num_kv_heads'] = fields['num_heads']
  if fields['head_dim'] is None:
    fields['head_dim'] = fields['d_model'] // fields['num_heads']
  return fields | {
    'attention_out_bias': fields['attention_bias'],
    **_read_rope(values),
  }


def _read_rope(values: dict) -> dict:
  """theta and scaling, from `transformers` 5's field or its older two."""
  rope = dict(values.get('rope_scaling') or {})
  rope |= values.get('rope_parameters') or {}
  kind = rope.get('rope_type', rope.get('type', 'default'))
  tables.require({'rope_type': kind}, {'rope_type': tuple(_ROPE_FIELDS)})
  tables.require(rope, {'partial_rotary_factor': (None, 1, 1.0)})
  theta = rope.get('rope_theta', values.get('rope_theta', 10000.0))
  scaling = None
  if kind != 'default':
    named = {
      ours: _Field(theirs).read(rope)
      for ours, theirs in _ROPE_FIELDS[kind].items()
    }
    scaling = model_config.RopeScaling(kind=kind, **named)
  return {'rope_theta': float(theta), 'rope_scaling': scaling}


_ROPE_FIELDS = {
  'default': {},
  'linear': {'factor': 'factor'},
  'llama3': {
    'factor': 'factor',
    'low_freq_factor': 'low_freq_factor',
    'high_freq_factor': 'high_freq_factor',
    'original_max_positions': 'original_max_position_embeddings',
  },
}


def _extra(config: model_config.ModelConfig) -> dict:
  # The older two fields: every reader knows them, `transformers` 5 too.
  scaling, written = config.rope_scaling, None
  if scaling:
    written = {'rope_type': scaling.kind}
    for ours, theirs in _ROPE_FIELDS[scaling.kind].items():
      written[theirs] = getattr(scaling, ours)
  return {'rope_theta': config.rope_theta, 'rope_scaling': written}


def _layer_rules(names: dict[str, str], ops: dict[str, tables.Op]):
  return tuple(
    _Rule(f'{theirs}.{part}', (f'layers/{ours}/{leaf}',), op)
    for ours, theirs in names.items()
    for part, leaf, op in (
      ('weight', 'kernel', ops.get(ours, _TRANSPOSE)),
      ('bias', 'bias', ops.get(f'{ours}/bias', tables.COPY)),
    )
  )


_HF = tables.Layout(
  fields={
    'vocab_size': _Field('vocab_size'),
    'num_layers': _Field('num_hidden_layers'),
    'd_model': _Field('hidden_size'),
    'num_heads': _Field('num_attention_heads'),
    'num_kv_heads': _Field('num_key_value_heads', None),
    'head_dim': _Field('head_dim', None),
    'd_ff': _Field('intermediate_size'),
    'max_positions': _Field('max_position_embeddings', 2048),
    'norm_eps': _Field('rms_norm_eps', 1e-6),
    'activation': _Field('hidden_act', 'silu', tables.ACTIVATIONS),
    'attention_bias': _Field('attention_bias', False),
    'mlp_bias': _Field('mlp_bias', False),
    'tie_embeddings': _Field('tie_word_embeddings', False),
  },
  complete=_complete,
  extra=_extra,
  prefix='model.',
  ignored=(r'(model\.)?layers\.\d+\.self_attn\.rotary_emb\.inv_freq',),
  rules=(
    _Rule('model.embed_tokens.weight', ('embed/tokens',)),
    _Rule(
      'model.layers.{i}.input_layernorm.weight',
      ('layers/attention_norm/scale',),
    ),
    _Rule(
      'model.layers.{i}.post_attention_layernorm.weight',
      ('layers/mlp_norm/scale',),
    ),
    *_layer_rules(
      {
        'attention/q': 'model.layers.{i}.self_attn.q_proj',
        'attention/k': 'model.layers.{i}.self_attn.k_proj',
        'attention/v': 'model.layers.{i}.self_attn.v_proj',
        'attention/o': 'model.layers.{i}.self_attn.o_proj',
        'mlp/gate': 'model.layers.{i}.mlp.gate_proj',
        'mlp/up': 'model.layers.{i}.mlp.up_proj',
        'mlp/down': 'model.layers.{i}.mlp.down_proj',
      },
      {},
    ),
    _Rule('model.norm.weight', ('final_norm/scale',)),
    _Rule('lm_head.weight', ('unembed/kernel',)),
  ),
)


def _complete_gguf(fields: dict, values: dict, source) -> dict:
  tables.require(values, {'expert_count': (0,)})
  tables.require(values, {'rope.scaling.type': ('none', 'linear')})
  if fields['num_kv_heads'] is None:
    fields['num_kv_heads'] = fields['num_heads']
  if not isinstance(fields['num_kv_heads'], int):
    raise ValueError('attention.head_count_kv differs between layers.')
  if fields['head_dim'] is None:
    fields['head_dim'] = fields['d_model'] // fields['num_heads']
  for key in ('attention.value_length', 'rope.dimension_count'):
    tables.require(values, {key: (fields['head_dim'],)})
  return fields | {
    'vocab_size': source.shapes['token_embd.weight'][0],
    'attention_bias': 'blk.0.attn_q.bias' in source.shapes,
    'attention_out_bias': 'blk.0.attn_output.bias' in source.shapes,
    'mlp_bias': 'blk.0.ffn_up.bias' in source.shapes,
    'tie_embeddings': not source.has_own_unembedding(),
    'rope_scaling': _read_gguf_scaling(fields, values, source),
  }


def _read_gguf_scaling(fields, values, source):
  factor = values.get('rope.scaling.factor')
  if values.get('rope.scaling.type') == 'linear' and factor not in (None, 1.0):
    return model_config.RopeScaling(kind='linear', factor=factor)
  if 'rope_freqs.weight' not in source.shapes:
    return None
  # The file has llama3's divisors of the frequencies, not what they are made
  # of; the published checkpoints differ in the factor alone.
  found = source.read('rope_freqs.weight')
  scaling = model_config.RopeScaling(kind='llama3', factor=float(found.max()))
  expected = _llama3_divisors(scaling, fields['head_dim'], fields['rope_theta'])
  if found.shape != expected.shape or not np.allclose(found, expected, 1e-4):
    raise ValueError(
      'rope_freqs.weight is not the scaling of Llama 3.1 or 3.2 (low 1, high '
      f'4, original 8192) with any factor: {found}, expected {expected}.'
    )
  return scaling


def _llama3_divisors(scaling, head_dim: int, theta: float) -> np.ndarray:
  exponents = np.arange(0, head_dim, 2) / head_dim
  turns = scaling.original_max_positions * theta**-exponents / (2 * math.pi)
  low, high = scaling.low_freq_factor, scaling.high_freq_factor
  share = np.clip((turns - low) / (high - low), 0, 1)
  return 1 / ((1 - share) / scaling.factor + share)


def _halves(x: np.ndarray, config: model_config.ModelConfig) -> np.ndarray:
  """Undoes the interleaving of each head's rows."""
  pairs = x.reshape(-1, config.head_dim // 2, 2, *x.shape[1:])
  return pairs.swapaxes(1, 2).reshape(x.shape)


_KERNEL = tables.Op(
  lambda x, config: (_halves(x, config).T,), None, _TRANSPOSE.shape
)
_BIAS = tables.Op(lambda x, config: (_halves(x, config),), None, lambda s: s)

_GGUF = tables.Layout(
  fields={
    'num_layers': _Field('block_count'),
    'd_model': _Field('embedding_length'),
    'num_heads': _Field('attention.head_count'),
    'num_kv_heads': _Field('attention.head_count_kv', None),
    'head_dim': _Field('attention.key_length', None),
    'd_ff': _Field('feed_forward_length'),
    'max_positions': _Field('context_length'),
    'norm_eps': _Field('attention.layer_norm_rms_epsilon'),
    'rope_theta': _Field('rope.freq_base', 10000.0),
  },
  complete=_complete_gguf,
  ignored=('rope_freqs.weight',),
  rules=(
    _Rule('token_embd.weight', ('embed/tokens',)),
    _Rule('blk.{i}.attn_norm.weight', ('layers/attention_norm/scale',)),
    _Rule('blk.{i}.ffn_norm.weight', ('layers/mlp_norm/scale',)),
    *_layer_rules(
      {
        'attention/q': 'blk.{i}.attn_q',
        'attention/k': 'blk.{i}.attn_k',
        'attention/v': 'blk.{i}.attn_v',
        'attention/o': 'blk.{i}.attn_output',
        'mlp/gate': 'blk.{i}.ffn_gate',
        'mlp/up': 'blk.{i}.ffn_up',
        'mlp/down': 'blk.{i}.ffn_down',
      },
      {
        'attention/q': _KERNEL,
        'attention/q/bias': _BIAS,
        'attention/k': _KERNEL,
        'attention/k/bias': _BIAS,
      },
    ),
    _Rule('output_norm.weight', ('final_norm/scale',)),
    _Rule('output.weight', ('unembed/kernel',)),
  ),
)

FAMILY = tables.Family('llama', 'LlamaForCausalLM', _HF, _GGUF)
