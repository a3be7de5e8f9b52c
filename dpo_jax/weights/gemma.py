"""Gemma 2 and 3, the text models.

GGUF stores norm scales with their 1 added, which is undone: exactly, except for
bits of tiny offsets that the file has lost.
"""

from dpo_jax.models import config as model_config
from dpo_jax.weights import llama, rotary, tables, windows

_Field = tables.Field

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
# Their own name first: `transformers` rounds the other's differently.
_ACTIVATIONS = {'gelu_pytorch_tanh': 'gelu_tanh', **tables.ACTIVATIONS}
_LESS_ONE = tables.Op(lambda x, _: (x - 1,), None, lambda s: s)
# Layers of the 27B models, which scale scores by d_model / num_heads where all
# others do by head_dim; GGUF says neither (llama.cpp, gemma2.cpp, gemma3.cpp).
_SCALED_BY_WIDTH = {'gemma2': 46, 'gemma3': 62}


def _common(fields: dict, scalar: float) -> dict:
  scaled = scalar != fields['head_dim']
  return _CONSTANT | {
    'attention_out_bias': fields['attention_bias'],
    'attention_scale': scalar**-0.5 if scaled else None,
    'embedding_scale': fields['d_model'] ** 0.5,
  }


def _complete(fields: dict, values: dict) -> dict:
  tables.require(values, {'use_bidirectional_attention': (None, False)})
  return fields | _common(fields, values.get('query_pre_attn_scalar', 256))


def _complete_2(fields: dict, values: dict, source) -> dict:
  local = windows.every(fields['num_layers'], 2)
  window = values.get('sliding_window', 4096)
  return {
    **_complete(fields, values),
    **rotary.read(rotary.collect(values), 10000.0),
    **windows.read(values, local, window),
  }


def _complete_3(fields: dict, values: dict, source) -> dict:
  # The class of this name does not apply it.
  tables.require(values, {'attn_logit_softcapping': (None,)})
  local = windows.every(
    fields['num_layers'], values.get('sliding_window_pattern', 6)
  )
  window = values.get('sliding_window', 4096)
  found = windows.read(values, local, window)
  return {
    **_complete(fields, values),
    **found,
    'qk_norm': True,
    **_ropes_3(values, bool(found['local_layers'])),
  }


def _ropes_3(values: dict, any_local: bool) -> dict:
  """Of `transformers` 5's table by kind of layer, or of older fields."""
  table = rotary.section(values, 'rope_parameters')
  kinds = ('full_attention', 'sliding_attention')
  if table and not any(kind in table for kind in kinds):
    raise ValueError(
      f'rope_parameters has {", ".join(table)}; expected tables for '
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
    'layer_types': windows.types_of(config),
  }


def _extra_3(config: model_config.ModelConfig) -> dict:
  values = _extra(config) | rotary.write(config)
  theta = config.local_rope_theta
  values['rope_local_base_freq'] = 10000.0 if theta is None else theta
  if config.local_rope_scaling:
    # Only `transformers` 5 knows of it.
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


def _complete_gguf(fields: dict, values: dict, source, name: str) -> dict:
  fields = llama.complete_gguf(fields, values, source)
  scalar = fields['head_dim']
  if fields['num_layers'] == _SCALED_BY_WIDTH[name]:
    scalar = fields['d_model'] // fields['num_heads']
  fields |= _common(fields, scalar)
  return fields | {'activation': 'gelu_tanh'}


def _complete_gguf_2(fields: dict, values: dict, source) -> dict:
  window = values.get('attention.sliding_window', 4096)
  local = windows.every(fields['num_layers'], 2)
  return {
    **_complete_gguf(fields, values, source, 'gemma2'),
    **windows.normal(local, window),
  }


def _complete_gguf_3(fields: dict, values: dict, source) -> dict:
  # Most files leave the pattern and the local layers' theta to the reader.
  local = values.get('attention.sliding_window_pattern', 6)
  if isinstance(local, int):
    local = windows.every(fields['num_layers'], local)
  found = windows.normal(local, values.get('attention.sliding_window'))
  if found['local_layers']:
    theta = values.get('rope.freq_base_swa', 10000.0)
    found['local_rope_theta'] = float(theta)
  return {
    **_complete_gguf(fields, values, source, 'gemma3'),
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
# Published configs leave out what is the class's default.
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
_HF_2 = tables.Layout(
  fields=_FIELDS_2,
  also=_ALSO,
  complete=_complete_2,
  extra=lambda config: _extra(config) | rotary.write(config),
  prefix='model.',
  ignored=llama.IGNORED,
  rules=llama.rules(_NORMS),
)
_HF_3 = _HF_2._replace(
  fields=_FIELDS_3,
  also=(
    *_ALSO,
    'rope_local_base_freq',
    'sliding_window_pattern',
    'attn_logit_softcapping',
  ),
  complete=_complete_3,
  extra=_extra_3,
)
# Folders of the models that also see images; only the text model is read.
_HF_3_OF_IMAGES = _HF_3._replace(
  section='text_config',
  extra=None,
  prefix='language_model.',
  ignored=(*llama.IGNORED, r'(vision_tower|multi_modal_projector)\..*'),
  rules=llama.rules(_NORMS, 'language_model.'),
)
_SCALES = [f'layers/{norm}/scale' for norm in _GGUF_NORMS]
_SCALES += [f'layers/attention/{x}_norm/scale' for x in 'qk']
_SCALES += ['final_norm/scale']
_GGUF_2 = tables.Layout(
  fields={
    **llama.GGUF_FIELDS,
    'attention_softcap': _Field('attn_logit_softcapping', 50.0),
    'logit_softcap': _Field('final_logit_softcapping', 30.0),
  },
  complete=_complete_gguf_2,
  rules=llama.gguf_rules(_GGUF_NORMS, dict.fromkeys(_SCALES, _LESS_ONE)),
)
_GGUF_3 = _GGUF_2._replace(
  fields={
    **llama.GGUF_FIELDS,
    'rope_theta': _Field('rope.freq_base'),
    'logit_softcap': _Field('final_logit_softcapping', None),
  },
  complete=_complete_gguf_3,
)

GEMMA2 = tables.Family('gemma2', 'Gemma2ForCausalLM', _HF_2, _GGUF_2)
GEMMA3_TEXT = tables.Family('gemma3_text', 'Gemma3ForCausalLM', _HF_3)
GEMMA3 = tables.Family(
  'gemma3', 'Gemma3ForConditionalGeneration', _HF_3_OF_IMAGES, _GGUF_3
)
