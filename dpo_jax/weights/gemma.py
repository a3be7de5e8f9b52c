"""Gemma 2 and 3, the text models.

GGUF stores each norm scale plus 1. Reading subtracts the 1 again, which is
exact up to the low bits of tiny offsets, which the file has lost.
"""

from dpo_jax.models import config as model_config
from dpo_jax.weights import llama, mapping, rotary, sliding_windows

_Field = mapping.Field

_CONSTANT = {'norm': 'rms_offset', 'post_norms': True}
_NORMS = {
  'attention_norm': 'input_layernorm',
  'attention_post_norm': 'post_attention_layernorm',
  'mlp_norm': 'pre_feedforward_layernorm',
  'mlp_post_norm': 'post_feedforward_layernorm',
}
_GGUF_NORMS = llama.GGUF_NORMS | {
  'attention_post_norm': 'post_attention_norm',
  'mlp_post_norm': 'post_ffw_norm',
}
# Gemma's own name first: `transformers` computes 'gelu_new' with other
# rounding.
_ACTIVATIONS = {'gelu_pytorch_tanh': 'gelu_tanh', **mapping.ACTIVATIONS}
_SUBTRACT_ONE = mapping.Op(lambda x, _: (x - 1,), None, lambda s: s)
# The number of layers of the 27B models. These scale scores by d_model /
# num_heads, all others by head_dim; GGUF files do not say which (llama.cpp:
# gemma2.cpp, gemma3.cpp).
_LAYERS_OF_27B = {'gemma2': 46, 'gemma3': 62}


def _common(fields: dict, scalar: float) -> dict:
  scaled = scalar != fields['head_dim']
  return _CONSTANT | {
    'attention_out_bias': fields['attention_bias'],
    'attention_scale': scalar**-0.5 if scaled else None,
    'embedding_scale': fields['d_model'] ** 0.5,
  }


def _complete(fields: dict, values: dict) -> dict:
  mapping.require(values, {'use_bidirectional_attention': (None, False)})
  return fields | _common(fields, values.get('query_pre_attn_scalar', 256))


def _complete_2(fields: dict, values: dict, reader) -> dict:
  local = sliding_windows.every(fields['num_layers'], 2)
  window = values.get('sliding_window', 4096)
  return {
    **_complete(fields, values),
    **rotary.read(rotary.collect(values), 10000.0),
    **sliding_windows.read(values, local, window),
  }


def _complete_3(fields: dict, values: dict, reader) -> dict:
  # The class in `transformers` ignores this field.
  mapping.require(values, {'attn_logit_softcapping': (None,)})
  local = sliding_windows.every(
    fields['num_layers'], values.get('sliding_window_pattern', 6)
  )
  window = values.get('sliding_window', 4096)
  found = sliding_windows.read(values, local, window)
  return {
    **_complete(fields, values),
    **found,
    'qk_norm': True,
    **_ropes_3(values, bool(found['local_layers'])),
  }


def _ropes_3(values: dict, any_local: bool) -> dict:
  """Rotary fields: by layer type (`transformers` 5), or from older fields."""
  table = rotary.section(values, 'rope_parameters')
  kinds = ('full_attention', 'sliding_attention')
  if table and not any(kind in table for kind in kinds):
    raise ValueError(
      f'rope_parameters has {", ".join(table)}; expected objects for '
      f'{" and ".join(kinds)}.'
    )
  older = {k: v for k, v in values.items() if k != 'rope_parameters'}
  full = rotary.collect(older) | rotary.section(table, 'full_attention')
  ropes = rotary.read(full, 1e6)
  if any_local:
    sliding = {'rope_theta': values.get('rope_local_base_freq', 10000.0)}
    sliding |= rotary.section(table, 'sliding_attention')
    for name, value in rotary.read(sliding, 10000.0).items():
      ropes[f'local_{name}'] = value
  return ropes


def _extra(config: model_config.ModelConfig) -> dict:
  scalar = config.head_dim
  if config.attention_scale is not None:
    scalar = round(config.attention_scale**-2)
  return {
    'query_pre_attn_scalar': scalar,
    'sliding_window': config.window,
    'layer_types': sliding_windows.types_of(config),
  }


def _extra_3(config: model_config.ModelConfig) -> dict:
  values = _extra(config) | rotary.write(config)
  theta = config.local_rope_theta
  values['rope_local_base_freq'] = 10000.0 if theta is None else theta
  if config.local_rope_scaling:
    # Only `transformers` 5 supports it.
    ropes = {
      'full_attention': (config.rope_theta, config.rope_scaling),
      'sliding_attention': (theta, config.local_rope_scaling),
    }
    values['rope_parameters'] = {
      name: {'rope_type': 'default', 'rope_theta': theta}
      | (rotary.write_scaling(scaling) or {})
      for name, (theta, scaling) in ropes.items()
    }
  return values


def _complete_gguf(fields: dict, values: dict, reader, name: str) -> dict:
  fields = llama.complete_gguf(fields, values, reader)
  scalar = fields['head_dim']
  if fields['num_layers'] == _LAYERS_OF_27B[name]:
    scalar = fields['d_model'] // fields['num_heads']
  fields |= _common(fields, scalar)
  return fields | {'activation': 'gelu_tanh'}


def _complete_gguf_2(fields: dict, values: dict, reader) -> dict:
  window = values.get('attention.sliding_window', 4096)
  local = sliding_windows.every(fields['num_layers'], 2)
  return {
    **_complete_gguf(fields, values, reader, 'gemma2'),
    **sliding_windows.normal(local, window),
  }


def _complete_gguf_3(fields: dict, values: dict, reader) -> dict:
  # Most files lack the pattern and the local layers' theta.
  local = values.get('attention.sliding_window_pattern', 6)
  if isinstance(local, int):
    local = sliding_windows.every(fields['num_layers'], local)
  found = sliding_windows.normal(local, values.get('attention.sliding_window'))
  if found['local_layers']:
    theta = values.get('rope.freq_base_swa', 10000.0)
    found['local_rope_theta'] = float(theta)
  return {
    **_complete_gguf(fields, values, reader, 'gemma3'),
    **found,
    'qk_norm': True,
  }


_FIELDS = llama.FIELDS | {
  'num_kv_heads': _Field('num_key_value_heads', 4),
  'head_dim': _Field('head_dim', 256),
  'activation': _Field('hidden_activation', 'gelu_pytorch_tanh', _ACTIVATIONS),
  'attention_bias': _Field('attention_bias', False),
  'tie_embeddings': _Field('tie_word_embeddings', True),
}
_FIELDS_2 = _FIELDS | {
  'max_positions': _Field('max_position_embeddings', 8192),
  'attention_softcap': _Field('attn_logit_softcapping', 50.0),
  'logit_softcap': _Field('final_logit_softcapping', 30.0),
}
# Published configs leave out values that are the class's defaults.
_FIELDS_3 = _FIELDS | {
  'vocab_size': _Field('vocab_size', 262208),
  'num_heads': _Field('num_attention_heads', 8),
  'max_positions': _Field('max_position_embeddings', 131072),
  'logit_softcap': _Field('final_logit_softcapping', None),
}
_ALSO = (
  *rotary.READS,
  'query_pre_attn_scalar',
  'sliding_window',
  'layer_types',
  'use_bidirectional_attention',
)
_HF_2 = mapping.Format(
  fields=_FIELDS_2,
  also_read=_ALSO,
  complete=_complete_2,
  extra=lambda config: _extra(config) | rotary.write(config),
  prefix='model.',
  ignored=llama.IGNORED,
  tensor_maps=llama.tensor_maps(_NORMS),
)
_HF_3 = _HF_2._replace(
  fields=_FIELDS_3,
  also_read=(
    *_ALSO,
    'rope_local_base_freq',
    'sliding_window_pattern',
    'attn_logit_softcapping',
  ),
  complete=_complete_3,
  extra=_extra_3,
)
# Folders of the models for text and images; only the text model is read.
_HF_3_MULTIMODAL = _HF_3._replace(
  section='text_config',
  extra=None,
  prefix='language_model.',
  ignored=(*llama.IGNORED, r'(vision_tower|multi_modal_projector)\..*'),
  tensor_maps=llama.tensor_maps(_NORMS, 'language_model.'),
)
_SCALES = [f'layers/{norm}/scale' for norm in _GGUF_NORMS]
_SCALES += [f'layers/attention/{x}_norm/scale' for x in 'qk']
_SCALES += ['final_norm/scale']
_GGUF_2 = mapping.Format(
  fields={
    **llama.GGUF_FIELDS,
    'attention_softcap': _Field('attn_logit_softcapping', 50.0),
    'logit_softcap': _Field('final_logit_softcapping', 30.0),
  },
  complete=_complete_gguf_2,
  tensor_maps=llama.gguf_tensor_maps(
    _GGUF_NORMS, dict.fromkeys(_SCALES, _SUBTRACT_ONE)
  ),
)
_GGUF_3 = _GGUF_2._replace(
  fields={
    **llama.GGUF_FIELDS,
    'rope_theta': _Field('rope.freq_base'),
    'logit_softcap': _Field('final_logit_softcapping', None),
  },
  complete=_complete_gguf_3,
)

GEMMA2 = mapping.Family(
  'gemma2',
  'Gemma2ForCausalLM',
  'Gemma2ForSequenceClassification',
  _HF_2,
  _GGUF_2,
)
GEMMA3_TEXT = mapping.Family(
  'gemma3_text',
  'Gemma3ForCausalLM',
  'Gemma3TextForSequenceClassification',
  _HF_3,
)
GEMMA3 = mapping.Family(
  'gemma3',
  'Gemma3ForConditionalGeneration',
  'Gemma3ForSequenceClassification',
  _HF_3_MULTIMODAL,
  _GGUF_3,
)
