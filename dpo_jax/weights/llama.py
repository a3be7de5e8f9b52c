"""Llama and what is stored like it: SmolLM2, TinyLlama, Llama 1 to 3; Mistral.

GGUF stores the rows of Q and K interleaved, (0, d/2, 1, d/2 + 1, ...) of each
head, for a rotation of neighbours; ours, as Hugging Face's, rotates halves.
"""

import math

import numpy as np

from dpo_jax.models import config as model_config
from dpo_jax.weights import rotary, tables, windows

_Field, _Rule = tables.Field, tables.Rule

# What the other families like Llama share with it.
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
  'activation': _Field('hidden_act', 'silu', tables.ACTIVATIONS),
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


def rules(
  norms: dict[str, str] = NORMS, root: str = ''
) -> tuple[tables.Rule, ...]:
  """Tensors of a Hugging Face folder, below `root`."""
  names = {
    f'layers/{ours}': f'{root}model.layers.{{i}}.{theirs}'
    for ours, theirs in (norms | _MODULES).items()
  }
  return (
    _Rule(f'{root}model.embed_tokens.weight', ('embed/tokens',)),
    *tables.rules_of(names, {}),
    _Rule(f'{root}model.norm.weight', ('final_norm/scale',)),
    _Rule(f'{root}lm_head.weight', ('unembed/kernel',)),
  )


def gguf_rules(
  norms: dict[str, str] = GGUF_NORMS,
  ops: dict[str, tables.Op] | None = None,
) -> tuple[tables.Rule, ...]:
  """Tensors of a GGUF file; `ops` as for `tables.rules_of`."""
  names = {
    f'layers/{ours}': f'blk.{{i}}.{theirs}'
    for ours, theirs in (norms | _GGUF_MODULES).items()
  }
  names['final_norm'] = 'output_norm'
  return (
    _Rule('token_embd.weight', ('embed/tokens',)),
    *tables.rules_of(names, ops or {}),
    _Rule('output.weight', ('unembed/kernel',)),
  )


def complete(
  fields: dict, values: dict, source=None, *, theta: float = 10000.0
) -> dict:
  """Sizes and rotary positions."""
  tables.require(values, {'partial_rotary_factor': (None, 1)})
  rope = rotary.read(rotary.collect(values), theta)
  return fields | _sizes(fields) | rope


def _sizes(fields: dict) -> dict:
  sizes = {}
  if fields['num_kv_heads'] is None:
    sizes['num_kv_heads'] = fields['num_heads']
  if fields['head_dim'] is None:
    sizes['head_dim'] = fields['d_model'] // fields['num_heads']
  return sizes


def _complete_llama(fields: dict, values: dict, source) -> dict:
  tables.require(values, {'sliding_window': (None,)})
  fields = complete(fields, values)
  return fields | {'attention_out_bias': fields['attention_bias']}


def _complete_mistral(fields: dict, values: dict, source) -> dict:
  fields = complete(fields, values)
  everywhere = (True,) * fields['num_layers']
  found = windows.normal(everywhere, values.get('sliding_window', 4096))
  # The class of this name has its window in every layer, whatever they say.
  if windows.read(values, everywhere, found['window']) != found:
    raise ValueError(
      'layer_types names layers without sliding attention, which model_type '
      "'mistral' has not."
    )
  return fields | found


def complete_gguf(fields: dict, values: dict, source) -> dict:
  """All but the window, and what a family has always or never."""
  tables.require(values, {'expert_count': (0,)})
  tables.require(values, {'rope.scaling.type': ('none', 'linear')})
  fields = fields | _sizes(fields)
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


_HF = tables.Layout(
  fields={
    **FIELDS,
    'attention_bias': _Field('attention_bias', False),
    'mlp_bias': _Field('mlp_bias', False),
  },
  also=rotary.READS,
  complete=_complete_llama,
  extra=rotary.write,
  prefix='model.',
  ignored=IGNORED,
  rules=rules(),
)
_MISTRAL = tables.Layout(
  fields=FIELDS | {'max_positions': _Field('max_position_embeddings', 131072)},
  also=(*rotary.READS, 'sliding_window'),
  complete=_complete_mistral,
  extra=lambda config: rotary.write(config) | {'sliding_window': config.window},
  prefix='model.',
  ignored=IGNORED,
  rules=rules(),
)
_GGUF = tables.Layout(
  fields=GGUF_FIELDS,
  complete=complete_gguf,
  ignored=('rope_freqs.weight',),
  rules=gguf_rules(
    ops={
      f'layers/attention/{x}/{leaf}': op
      for x in 'qk'
      for leaf, op in (('kernel', rotary.KERNEL), ('bias', rotary.BIAS))
    },
  ),
)

FAMILY = tables.Family('llama', 'LlamaForCausalLM', _HF, _GGUF)
# As GGUF it is stored under the name of Llama.
MISTRAL = tables.Family('mistral', 'MistralForCausalLM', _MISTRAL)
