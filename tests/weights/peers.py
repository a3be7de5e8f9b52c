"""Tiny random models of `transformers` for every family, all variants on."""

import torch
import transformers

_LLAMA_LIKE = dict(
  vocab_size=97,
  hidden_size=32,
  intermediate_size=40,
  num_hidden_layers=2,
  num_attention_heads=4,
  num_key_value_heads=2,
  max_position_embeddings=64,
  rms_norm_eps=1e-3,
  initializer_range=0.3,
  bos_token_id=None,
  eos_token_id=None,
  pad_token_id=None,
)
_GPT2_LIKE = dict(
  vocab_size=97,
  n_embd=32,
  n_layer=2,
  n_head=4,
  n_positions=64,
  layer_norm_epsilon=1e-3,
  initializer_range=0.3,
  bos_token_id=None,
  eos_token_id=None,
  resid_pdrop=0.0,
  embd_pdrop=0.0,
  attn_pdrop=0.0,
)
_LLAMA3_ROPE = dict(
  rope_type='llama3',
  rope_theta=500.0,
  factor=8.0,
  low_freq_factor=1.0,
  high_freq_factor=4.0,
  original_max_position_embeddings=32,
)
_LINEAR_ROPE = dict(rope_type='linear', factor=4.0, rope_theta=200.0)
_MIXED = ['full_attention', 'sliding_attention']

# The window is shorter than the sequences of every test.
OPTIONS = {
  'llama': _LLAMA_LIKE
  | dict(
    head_dim=12,
    attention_bias=True,
    mlp_bias=True,
    hidden_act='gelu',
    rope_parameters=_LLAMA3_ROPE,
  ),
  'mistral': _LLAMA_LIKE
  | dict(head_dim=12, sliding_window=5, rope_parameters=_LINEAR_ROPE),
  'qwen2': _LLAMA_LIKE
  | dict(
    use_sliding_window=True,
    sliding_window=5,
    max_window_layers=1,
    tie_word_embeddings=True,
  ),
  'qwen3': _LLAMA_LIKE
  | dict(
    head_dim=12,
    attention_bias=True,
    use_sliding_window=True,
    sliding_window=5,
    layer_types=_MIXED,
    rope_parameters=_LINEAR_ROPE,
  ),
  'gemma2': _LLAMA_LIKE
  | dict(
    head_dim=12,
    attention_bias=True,
    sliding_window=5,
    query_pre_attn_scalar=20,
    attn_logit_softcapping=3.0,
    final_logit_softcapping=5.0,
  ),
  'gemma3_text': _LLAMA_LIKE
  | dict(
    head_dim=12,
    attention_bias=True,
    sliding_window=5,
    layer_types=_MIXED,
    query_pre_attn_scalar=20,
    final_logit_softcapping=5.0,
    tie_word_embeddings=False,
    rope_parameters=dict(
      full_attention=_LINEAR_ROPE,
      sliding_attention=dict(rope_type='default', rope_theta=30.0),
    ),
  ),
  'gptj': _GPT2_LIKE | dict(rotary_dim=4, n_inner=40),
  'gpt_neox': {
    **{k: v for k, v in _LLAMA_LIKE.items() if 'rms' not in k},
    **dict(layer_norm_eps=1e-3, hidden_act='gelu_new'),
    'rope_parameters': _LINEAR_ROPE | dict(partial_rotary_factor=0.5),
  },
  'gpt_neox-sequential': {
    **{k: v for k, v in _LLAMA_LIKE.items() if 'rms' not in k},
    **dict(use_parallel_residual=False, attention_bias=False),
    'rope_parameters': dict(
      rope_type='default', rope_theta=300.0, partial_rotary_factor=1.0
    ),
  },
  'gpt2': _GPT2_LIKE
  | dict(
    n_inner=40,
    tie_word_embeddings=False,
    scale_attn_weights=False,
    scale_attn_by_inverse_layer_idx=True,
  ),
}


def model_type(name: str) -> str:
  return name.split('-')[0]


def make(
  name: str, *, kind=transformers.AutoModelForCausalLM, **changes
) -> transformers.PreTrainedModel:
  """The model `name`; its biases and norms are not 0 and 1, which hides a lot.

  kind: the class that makes it of a config. `changes` are made to its config.
  """
  torch.manual_seed(0)
  config = transformers.AutoConfig.for_model(
    model_type(name), **(OPTIONS[name] | changes)
  )
  model = kind.from_config(config)
  with torch.no_grad():
    for p in model.parameters():
      if p.ndim == 1:
        p.add_(torch.randn_like(p) * 0.2)
  return model.eval()
