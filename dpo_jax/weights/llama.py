"""Llama 1 to 3, models stored alike (SmolLM2, TinyLlama), and Mistral.

GGUF interleaves the rows of q and k, (0, d/2, 1, d/2 + 1, ...) of each head,
because its rotation pairs adjacent rows; ours, like Hugging Face's, pairs row i
with row i + d/2.
"""

import math

import numpy as np

from dpo_jax.models import config as model_config
from dpo_jax.weights import mapping, rotary, sliding_windows

_Field, _TensorMap = mapping.Field, mapping.TensorMap

# Qwen and Gemma share these fields.
FIELDS = {
  'vocab_size': _Field('vocab_size'),
  'num_layers': _Field('num_hidden_layers'),
  'd_model': _Field('hidden_size'),
  'num_heads': _Field('num_attention_heads'),
  'num_kv_heads': _Field('num_key_value_heads', None),
  'head_dim': _Field('head_dim', None),
  'd_ff': _Field('intermediate_size'),
  'max_positions': _Field('max_position_embeddings', 2048),
  'norm_eps': _Field('rms_norm_eps', 1e-6),
  'activation': _Field('hidden_act', 'silu', mapping.ACTIVATIONS),
  'tie_embeddings': _Field('tie_word_embeddings', False),
}
GGUF_FIELDS = {
  'num_layers': _Field('block_count'),
  'd_model': _Field('embedding_length'),
  'num_heads': _Field('attention.head_count'),
  'num_kv_heads': _Field('attention.head_count_kv', None),
  'head_dim': _Field('attention.key_length', None),
  'd_ff': _Field('feed_forward_length'),
  'max_positions': _Field('context_length'),
  'norm_eps': _Field('attention.layer_norm_rms_epsilon'),
  'rope_theta': _Field('rope.freq_base', 10000.0),
}
_MODULES = {
  **{f'attention/{x}': f'self_attn.{x}_proj' for x in 'qkvo'},
  **{f'attention/{x}_norm': f'self_attn.{x}_norm' for x in 'qk'},
  **{f'mlp/{x}': f'mlp.{x}_proj' for x in ('gate', 'up', 'down')},
}
_GGUF_MODULES = {
  'attention/q': 'attn_q',
  'attention/k': 'attn_k',
  'attention/v': 'attn_v',
  'attention/o': 'attn_output',
  'attention/q_norm': 'attn_q_norm',
  'attention/k_norm': 'attn_k_norm',
  'mlp/gate': 'ffn_gate',
  'mlp/up': 'ffn_up',
  'mlp/down': 'ffn_down',
}
NORMS = {
  'attention_norm': 'input_layernorm',
  'mlp_norm': 'post_attention_layernorm',
}
GGUF_NORMS = {'attention_norm': 'attn_norm', 'mlp_norm': 'ffn_norm'}
IGNORED = (r'(model\.)?layers\.\d+\.self_attn\.rotary_emb\.inv_freq',)


def tensor_maps(
  norms: dict[str, str] = NORMS, root: str = ''
) -> tuple[mapping.TensorMap, ...]:
  """Tensors of a Hugging Face folder, their names prefixed with `root`."""
  names = {
    f'layers/{ours}': f'{root}model.layers.{{i}}.{stored}'
    for ours, stored in (norms | _MODULES).items()
  }
  return (
    _TensorMap(f'{root}model.embed_tokens.weight', ('embed/tokens',)),
    *mapping.module_maps(names, {}),
    _TensorMap(f'{root}model.norm.weight', ('final_norm/scale',)),
    _TensorMap(f'{root}lm_head.weight', ('unembed/kernel',)),
  )


def gguf_tensor_maps(
  norms: dict[str, str] = GGUF_NORMS,
  ops: dict[str, mapping.Op] | None = None,
) -> tuple[mapping.TensorMap, ...]:
  """Tensors of a GGUF file; for `ops` see `mapping.module_maps`."""
  names = {
    f'layers/{ours}': f'blk.{{i}}.{stored}'
    for ours, stored in (norms | _GGUF_MODULES).items()
  }
  names['final_norm'] = 'output_norm'
  return (
    _TensorMap('token_embd.weight', ('embed/tokens',)),
    *mapping.module_maps(names, ops or {}),
    _TensorMap('output.weight', ('unembed/kernel',)),
  )


def complete(
  fields: dict, values: dict, reader=None, *, theta: float = 10000.0
) -> dict:
  """`fields` with the sizes and rotary positions of a Hugging Face config."""
  mapping.require(values, {'partial_rotary_factor': (None, 1)})
  rope = rotary.read(rotary.collect(values), theta)
  return fields | _sizes(fields) | rope


def _sizes(fields: dict) -> dict:
  sizes = {}
  if fields['num_kv_heads'] is None:
    sizes['num_kv_heads'] = fields['num_heads']
  if fields['head_dim'] is None:
    sizes['head_dim'] = fields['d_model'] // fields['num_heads']
  return sizes


def _complete_llama(fields: dict, values: dict, reader) -> dict:
  mapping.require(values, {'sliding_window': (None,)})
  fields = complete(fields, values)
  return fields | {'attention_out_bias': fields['attention_bias']}


def _complete_mistral(fields: dict, values: dict, reader) -> dict:
  fields = complete(fields, values)
  everywhere = (True,) * fields['num_layers']
  found = sliding_windows.normal(everywhere, values.get('sliding_window', 4096))
  # Its class in `transformers` has a window in every layer, whatever
  # layer_types says.
  if sliding_windows.read(values, everywhere, found['window']) != found:
    raise ValueError(
      'layer_types has layers without sliding attention, which model_type '
      "'mistral' does not support."
    )
  return fields | found


def complete_gguf(fields: dict, values: dict, reader) -> dict:
  """`fields` with all that GGUF families have in common."""
  mapping.require(values, {'expert_count': (0,)})
  mapping.require(values, {'rope.scaling.type': ('none', 'linear')})
  fields = fields | _sizes(fields)
  for key in ('attention.value_length', 'rope.dimension_count'):
    mapping.require(values, {key: (fields['head_dim'],)})
  return fields | {
    'vocab_size': reader.shapes['token_embd.weight'][0],
    'attention_bias': 'blk.0.attn_q.bias' in reader.shapes,
    'attention_out_bias': 'blk.0.attn_output.bias' in reader.shapes,
    'mlp_bias': 'blk.0.ffn_up.bias' in reader.shapes,
    'tie_embeddings': not reader.has_own_unembedding(),
    'rope_scaling': _read_gguf_scaling(fields, values, reader),
  }


def _read_gguf_scaling(fields, values, reader):
  factor = values.get('rope.scaling.factor')
  if values.get('rope.scaling.type') == 'linear' and factor not in (None, 1.0):
    return model_config.RopeScaling(kind='linear', factor=factor)
  if 'rope_freqs.weight' not in reader.shapes:
    return None
  # The file has the frequency divisors of 'llama3' scaling, not its parameters;
  # published checkpoints differ in the factor only.
  found = reader.read('rope_freqs.weight')
  scaling = model_config.RopeScaling(kind='llama3', factor=float(found.max()))
  expected = _llama3_divisors(scaling, fields['head_dim'], fields['rope_theta'])
  if found.shape != expected.shape or not np.allclose(found, expected, 1e-4):
    raise ValueError(
      'rope_freqs.weight is not the rotary scaling of Llama 3.1 or 3.2 '
      '(low_freq_factor 1, high_freq_factor 4, original context 8192): '
      f'{found}; expected {expected}.'
    )
  return scaling


def _llama3_divisors(scaling, head_dim: int, theta: float) -> np.ndarray:
  exponents = np.arange(0, head_dim, 2) / head_dim
  turns = scaling.original_max_positions * theta**-exponents / (2 * math.pi)
  low, high = scaling.low_freq_factor, scaling.high_freq_factor
  share = np.clip((turns - low) / (high - low), 0, 1)
  return 1 / ((1 - share) / scaling.factor + share)


_HF = mapping.Format(
  fields={
    **FIELDS,
    'attention_bias': _Field('attention_bias', False),
    'mlp_bias': _Field('mlp_bias', False),
  },
  also_read=rotary.READS,
  complete=_complete_llama,
  extra=rotary.write,
  prefix='model.',
  ignored=IGNORED,
  tensor_maps=tensor_maps(),
)
_MISTRAL = mapping.Format(
  fields=FIELDS | {'max_positions': _Field('max_position_embeddings', 131072)},
  also_read=(*rotary.READS, 'sliding_window'),
  complete=_complete_mistral,
  extra=lambda config: rotary.write(config) | {'sliding_window': config.window},
  prefix='model.',
  ignored=IGNORED,
  tensor_maps=tensor_maps(),
)
_GGUF = mapping.Format(
  fields=GGUF_FIELDS,
  complete=complete_gguf,
  ignored=('rope_freqs.weight',),
  tensor_maps=gguf_tensor_maps(
    ops={
      f'layers/attention/{x}/{leaf}': op
      for x in 'qk'
      for leaf, op in (('kernel', rotary.KERNEL), ('bias', rotary.BIAS))
    },
  ),
)

FAMILY = mapping.Family(
  'llama', 'LlamaForCausalLM', 'LlamaForSequenceClassification', _HF, _GGUF
)
# Its GGUF files have the architecture 'llama'.
MISTRAL = mapping.Family(
  'mistral', 'MistralForCausalLM', 'MistralForSequenceClassification', _MISTRAL
)
