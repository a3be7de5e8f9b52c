"""GPT-2. Its files store kernels as [in, out] and q, k, v as one tensor."""

import numpy as np

from dpo_jax.weights import tables

_Field, _Rule = tables.Field, tables.Rule

_CONSTANT = {
  'norm': 'layer',
  'positions': 'learned',
  'gated_mlp': False,
  'attention_bias': True,
  'attention_out_bias': True,
  'mlp_bias': True,
}
_FUSED = tables.Op(
  lambda x, _: tuple(np.split(x, 3, axis=-1)),
  lambda _, *qkv: np.concatenate(qkv, axis=-1),
  lambda *shapes: (*shapes[0][:-1], sum(s[-1] for s in shapes)),
)
_FUSED_TRANSPOSED = tables.Op(
  lambda x, _: tuple(np.split(x.T, 3, axis=-1)),
  None,
  lambda *shapes: _FUSED.shape(*shapes)[::-1],
)


# What GPT-J shares with it.
FIELDS = {
  'vocab_size': _Field('vocab_size'),
  'num_layers': _Field('n_layer'),
  'd_model': _Field('n_embd'),
  'num_heads': _Field('n_head'),
  'd_ff': _Field('n_inner', None),
  'max_positions': _Field('n_positions', 1024),
  'norm_eps': _Field('layer_norm_epsilon', 1e-5),
  'activation': _Field('activation_function', 'gelu_new', tables.ACTIVATIONS),
  'tie_embeddings': _Field('tie_word_embeddings', True),
}


def sizes(fields: dict) -> dict:
  """What follows from the number of heads and the width."""
  if fields['d_model'] % fields['num_heads']:
    raise ValueError(
      f'A width of {fields["d_model"]} is no multiple of the number of heads, '
      f'{fields["num_heads"]}.'
    )
  return {
    'num_kv_heads': fields['num_heads'],
    'head_dim': fields['d_model'] // fields['num_heads'],
    'd_ff': 4 * fields['d_model'] if fields['d_ff'] is None else fields['d_ff'],
  }


def _complete(fields: dict, values: dict, source) -> dict:
  tables.require(values, {'add_cross_attention': (False,)})
  return fields | sizes(fields) | _CONSTANT


def _complete_gguf(fields: dict, values: dict, source) -> dict:
  return (
    fields
    | sizes(fields)
    | _CONSTANT
    | {
      'vocab_size': source.shapes['token_embd.weight'][0],
      'activation': 'gelu_tanh',
      'tie_embeddings': not source.has_own_unembedding(),
    }
  )


def _rules(
  names: dict[str, str], qkv: tables.Op, kernel: tables.Op
) -> tuple[tables.Rule, ...]:
  """`names` maps our modules to theirs; norms and biases are only copied."""
  rules = []
  for ours, theirs in names.items():
    weight = 'scale' if 'norm' in ours else 'kernel'
    for part, leaf in (('weight', weight), ('bias', 'bias')):
      if ours == 'layers/attention/qkv':
        paths = tuple(f'layers/attention/{x}/{leaf}' for x in 'qkv')
        op = qkv if leaf == 'kernel' else _FUSED
      else:
        paths = (f'{ours}/{leaf}',)
        op = kernel if leaf == 'kernel' else tables.COPY
      rules.append(_Rule(f'{theirs}.{part}', paths, op))
  return tuple(rules)


_HF = tables.Layout(
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
  rules=(
    _Rule('transformer.wte.weight', ('embed/tokens',)),
    _Rule('transformer.wpe.weight', ('embed/positions',)),
    *_rules(
      {
        'layers/attention_norm': 'transformer.h.{i}.ln_1',
        'layers/attention/qkv': 'transformer.h.{i}.attn.c_attn',
        'layers/attention/o': 'transformer.h.{i}.attn.c_proj',
        'layers/mlp_norm': 'transformer.h.{i}.ln_2',
        'layers/mlp/up': 'transformer.h.{i}.mlp.c_fc',
        'layers/mlp/down': 'transformer.h.{i}.mlp.c_proj',
        'final_norm': 'transformer.ln_f',
      },
      _FUSED,
      tables.COPY,
    ),
    _Rule('lm_head.weight', ('unembed/kernel',)),
  ),
)

_GGUF = tables.Layout(
  fields={
    'num_layers': _Field('block_count'),
    'd_model': _Field('embedding_length'),
    'num_heads': _Field('attention.head_count'),
    'd_ff': _Field('feed_forward_length'),
    'max_positions': _Field('context_length'),
    'norm_eps': _Field('attention.layer_norm_epsilon'),
  },
  complete=_complete_gguf,
  rules=(
    _Rule('token_embd.weight', ('embed/tokens',)),
    _Rule('position_embd.weight', ('embed/positions',)),
    *_rules(
      {
        'layers/attention_norm': 'blk.{i}.attn_norm',
        'layers/attention/qkv': 'blk.{i}.attn_qkv',
        'layers/attention/o': 'blk.{i}.attn_output',
        'layers/mlp_norm': 'blk.{i}.ffn_norm',
        'layers/mlp/up': 'blk.{i}.ffn_up',
        'layers/mlp/down': 'blk.{i}.ffn_down',
        'final_norm': 'output_norm',
      },
      _FUSED_TRANSPOSED,
      tables.TRANSPOSE,
    ),
    _Rule('output.weight', ('unembed/kernel',)),
  ),
)

FAMILY = tables.Family('gpt2', 'GPT2LMHeadModel', _HF, _GGUF)
