"""GPT-J: the first rotary_dim of each head are rotated in adjacent pairs."""

from dpo_jax.weights import gpt2, mapping, rotary

_Field, _TensorMap = mapping.Field, mapping.TensorMap

_CONSTANT = {
  'norm': 'layer',
  'residual': 'parallel_one_norm',
  'rope_theta': 10000.0,
  'gated_mlp': False,
  'mlp_bias': True,
  'unembed_bias': True,
}


def _complete(fields: dict, values: dict, reader) -> dict:
  fields = fields | gpt2.sizes(fields) | _CONSTANT
  if fields['rotary_dim'] == fields['head_dim']:
    fields['rotary_dim'] = None
  return fields


_HF = mapping.Format(
  fields={
    **gpt2.FIELDS,
    'max_positions': _Field('n_positions', 2048),
    'rotary_dim': _Field('rotary_dim', 64),
    'tie_embeddings': _Field('tie_word_embeddings', False),
  },
  complete=_complete,
  extra=lambda config: {'rotary_dim': config.rotary_dim or config.head_dim},
  prefix='transformer.',
  ignored=(r'(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)',),
  tensor_maps=(
    _TensorMap('transformer.wte.weight', ('embed/tokens',)),
    *mapping.module_maps(
      {
        'layers/attention_norm': 'transformer.h.{i}.ln_1',
        'layers/attention/q': 'transformer.h.{i}.attn.q_proj',
        'layers/attention/k': 'transformer.h.{i}.attn.k_proj',
        'layers/attention/v': 'transformer.h.{i}.attn.v_proj',
        'layers/attention/o': 'transformer.h.{i}.attn.out_proj',
        'layers/mlp/up': 'transformer.h.{i}.mlp.fc_in',
        'layers/mlp/down': 'transformer.h.{i}.mlp.fc_out',
        'final_norm': 'transformer.ln_f',
      },
      {f'layers/attention/{x}/kernel': rotary.KERNEL for x in 'qk'},
    ),
    _TensorMap('lm_head.weight', ('unembed/kernel',)),
    _TensorMap('lm_head.bias', ('unembed/bias',)),
  ),
)

FAMILY = mapping.Family(
  'gptj', 'GPTJForCausalLM', 'GPTJForSequenceClassification', _HF
)
