"""Logits equal those of transformers for each variant of the config.

All variants of a family at once are in tests/weights/families_test.py.
"""

import jax
import numpy as np
import pytest
import torch
import transformers

from dpo_jax import models, weights

LLAMA = dict(
  vocab_size=97,
  hidden_size=32,
  intermediate_size=56,
  num_hidden_layers=3,
  num_attention_heads=4,
  num_key_value_heads=2,
  head_dim=12,
  max_position_embeddings=256,
  rms_norm_eps=1e-3,
  initializer_range=0.3,
)
LLAMA_QUIRKS = {
  'plain': {},
  'tied': dict(tie_word_embeddings=True),
  'biases': dict(attention_bias=True, mlp_bias=True),
  'multi_query': dict(num_key_value_heads=1),
  'no_groups': dict(num_key_value_heads=4),
  'gelu': dict(hidden_act='gelu'),
  'theta': dict(rope_parameters=dict(rope_type='default', rope_theta=500.0)),
  'linear_rope': dict(
    rope_parameters=dict(rope_type='linear', factor=4.0, rope_theta=1e4)
  ),
  'llama3_rope': dict(
    rope_parameters=dict(
      rope_type='llama3',
      rope_theta=1e4,
      factor=8.0,
      low_freq_factor=1.0,
      high_freq_factor=4.0,
      original_max_position_embeddings=64,
    )
  ),
}
GPT2 = dict(
  vocab_size=97,
  n_embd=32,
  n_layer=3,
  n_head=4,
  n_positions=256,
  layer_norm_epsilon=1e-3,
  initializer_range=0.3,
)
GPT2_QUIRKS = {
  'plain': {},
  'untied': dict(tie_word_embeddings=False),
  'n_inner': dict(n_inner=40),
  'no_scale': dict(scale_attn_weights=False),
  'by_layer': dict(
    scale_attn_by_inverse_layer_idx=True, reorder_and_upcast_attn=True
  ),
  'exact_gelu': dict(activation_function='gelu'),
  'relu': dict(activation_function='relu'),
}
CASES = [
  *[('llama', name) for name in LLAMA_QUIRKS],
  *[('gpt2', name) for name in GPT2_QUIRKS],
]


def _peer(family, quirk):
  torch.manual_seed(0)
  if family == 'llama':
    config = transformers.LlamaConfig(**(LLAMA | LLAMA_QUIRKS[quirk]))
    model = transformers.LlamaForCausalLM(config)
  else:
    config = transformers.GPT2Config(**(GPT2 | GPT2_QUIRKS[quirk]))
    model = transformers.GPT2LMHeadModel(config)
  with torch.no_grad():
    for p in model.parameters():
      # Biases and norms start at 0 and 1, where many mistakes don't show.
      if p.ndim == 1:
        p.add_(torch.randn_like(p) * 0.2)
  return model.eval()


def _assert_same_logits(model, config, params, tokens):
  with torch.no_grad():
    expected = model(torch.as_tensor(tokens)).logits.numpy()

  @jax.jit
  def logits(params):
    return models.logits(params, config, models.forward(params, config, tokens))

  error = np.abs(np.asarray(logits(params)) - expected).max()
  assert error <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize(('family', 'quirk'), CASES)
def test_logits_equal_transformers(family, quirk, tmp_path):
  model = _peer(family, quirk)
  model.save_pretrained(tmp_path)
  config, params = weights.load(str(tmp_path))
  tokens = np.random.default_rng(0).integers(0, 97, (2, 150))
  _assert_same_logits(model, config, params, tokens)


@pytest.mark.long
@pytest.mark.download
def test_logits_of_the_real_model_equal_transformers(smollm2_gguf, movie_file):
  model = transformers.AutoModelForCausalLM.from_pretrained(
    smollm2_gguf.parent, gguf_file=smollm2_gguf.name, dtype=torch.float32
  ).eval()
  tokenizer = transformers.AutoTokenizer.from_pretrained(
    smollm2_gguf.parent, gguf_file=smollm2_gguf.name
  )
  text = movie_file.read_text('utf-8').split('\t')[2:60:2]
  tokens = np.array(tokenizer(' '.join(text)).input_ids[:400]).reshape(2, 200)
  config, params = weights.load(str(smollm2_gguf))
  _assert_same_logits(model, config, params, tokens)
