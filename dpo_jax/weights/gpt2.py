"""GPT-2: kernels are stored as [in, out], and q, k and v as one tensor."""

import numpy as np

from dpo_jax.weights import mapping

_Field, _TensorMap = mapping.Field, mapping.TensorMap

_CONSTANT = {
  'norm': 'layer',
  'positions': 'learned',
  'gated_mlp': False,
  'attention_bias': True,
  'attention_out_bias': True,
  'mlp_bias': True,
}
_FUSED = mapping.Op(
  lambda x, _: tuple(np.split(x, 3, axis=-1)),
  lambda _, *qkv: np.concatenate(qkv, axis=-1),
  lambda *shapes: (*shapes[0][:-1], sum(s[-1] for s in shapes)),
)
_FUSED_TRANSPOSED = mapping.Op(
  lambda x, _: tuple(np.split(x.T, 3, axis=-1)),
  None,
  lambda *shapes: _FUSED.shape(*shapes)[::-1],
)


# GPT-J has these fields too.
FIELDS = {
  'vocab_size': _Field('vocab_size'),
  'num_layers': _Field('n_layer'),
  'd_model': _Field('n_embd'),
  'num_heads': _Field('n_head'),
  'd_ff': _Field('n_inner', None),
  'max_positions': _Field('n_positions', 1024),
  'norm_eps': _Field('layer_norm_epsilon', 1e-5),
  'activation': _Field('activation_function', 'gelu_new', mapping.ACTIVATIONS),
  'tie_embeddings': _Field('tie_word_embeddings', True),
}


def sizes(fields: dict) -> dict:
  """Head sizes and MLP width from the model width and number of heads."""
  if fields['d_model'] % fields['num_heads']:
    raise ValueError(
      f'The model width {fields["d_model"]} is not a multiple of the number of '
      f'heads, {fields["num_heads"]}.'
    )
  return {
    'num_kv_heads': fields['num_heads'],
    'head_dim': fields['d_model'] // fields['num_heads'],
    'd_ff': 4 * fields['d_model'] if fields['d_ff'] is None else fields['d_ff'],
  }


def _complete(fields: dict, values: dict, reader) -> dict:
  mapping.require(values, {'add_cross_attention': (False,)})
  return fields | sizes(fields) | _CONSTANT


def _complete_gguf(fields: dict, values: dict, reader) -> dict:
  return (
    fields
    | sizes(fields)
    | _CONSTANT
    | {
      'vocab_size': reader.shapes['token_embd.weight'][0],
      'activation': 'gelu_tanh',
      'tie_embeddings': not reader.has_own_unembedding(),
    }
  )


_HF = mapping.Format(
  fields={
    **FIELDS,
    'attention_scale': _Field(
      'scale_attn_weights', True, {True: None, False: 1.0}
    ),
    'attention_scale_by_layer': _Field(
      'scale_attn_by_inverse_layer_idx', False
    ),
  },
  complete=_complete,
  extra=lambda config: {},
  prefix='transformer.',
  ignored=(r'(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)',),
  tensor_maps=(
    _TensorMap('transformer.wte.weight', ('embed/tokens',)),
    _TensorMap('transformer.wpe.weight', ('embed/positions',)),
    *mapping.module_maps(
      {
        'layers/attention_norm': 'transformer.h.{i}.ln_1',
        'layers/attention/qkv': 'transformer.h.{i}.attn.c_attn',
        'layers/attention/o': 'transformer.h.{i}.attn.c_proj',
        'layers/mlp_norm': 'transformer.h.{i}.ln_2',
        'layers/mlp/up': 'transformer.h.{i}.mlp.c_fc',
        'layers/mlp/down': 'transformer.h.{i}.mlp.c_proj',
        'final_norm': 'transformer.ln_f',
      },
      {f'layers/attention/qkv/{leaf}': _FUSED for leaf in ('kernel', 'bias')},
      mapping.COPY,
    ),
    _TensorMap('lm_head.weight', ('unembed/kernel',)),
  ),
)

_GGUF = mapping.Format(
  fields={
    'num_layers': _Field('block_count'),
    'd_model': _Field('embedding_length'),
    'num_heads': _Field('attention.head_count'),
    'd_ff': _Field('feed_forward_length'),
    'max_positions': _Field('context_length'),
    'norm_eps': _Field('attention.layer_norm_epsilon'),
  },
  complete=_complete_gguf,
  tensor_maps=(
    _TensorMap('token_embd.weight', ('embed/tokens',)),
    _TensorMap('position_embd.weight', ('embed/positions',)),
    *mapping.module_maps(
      {
        'layers/attention_norm': 'blk.{i}.attn_norm',
        'layers/attention/qkv': 'blk.{i}.attn_qkv',
        'layers/attention/o': 'blk.{i}.attn_output',
        'layers/mlp_norm': 'blk.{i}.ffn_norm',
        'layers/mlp/up': 'blk.{i}.ffn_up',
        'layers/mlp/down': 'blk.{i}.ffn_down',
        'final_norm': 'output_norm',
      },
      {
        'layers/attention/qkv/kernel': _FUSED_TRANSPOSED,
        'layers/attention/qkv/bias': _FUSED,
      },
    ),
    _TensorMap('output.weight', ('unembed/kernel',)),
  ),
)

FAMILY = mapping.Family(
  'gpt2', 'GPT2LMHeadModel', 'GPT2ForSequenceClassification', _HF, _GGUF
)
