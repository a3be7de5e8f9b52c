"""ModelConfigs read from config.json of all families, and refused ones."""

import dataclasses

import jax
import numpy as np
import pytest
import transformers

from dpo_jax import models, weights
from dpo_jax.models import presets
from dpo_jax.weights import families, mapping
from tests.weights import peers

# As published, without fields that do not affect the model.
PUBLISHED = {
  'gpt-j-6b': dict(
    model_type='gptj',
    activation_function='gelu_new',
    layer_norm_epsilon=1e-05,
    n_embd=4096,
    n_head=16,
    n_inner=None,
    n_layer=28,
    n_positions=2048,
    rotary=True,
    rotary_dim=64,
    scale_attn_weights=True,
    tie_word_embeddings=False,
    vocab_size=50400,
  ),
  'pythia-2.8b': dict(
    model_type='gpt_neox',
    hidden_act='gelu',
    hidden_size=2560,
    intermediate_size=10240,
    layer_norm_eps=1e-05,
    max_position_embeddings=2048,
    num_attention_heads=32,
    num_hidden_layers=32,
    rotary_emb_base=10000,
    rotary_pct=0.25,
    tie_word_embeddings=False,
    use_parallel_residual=True,
    vocab_size=50304,
  ),
  'Llama-3.2-1B': dict(
    model_type='llama',
    attention_bias=False,
    head_dim=64,
    hidden_act='silu',
    hidden_size=2048,
    intermediate_size=8192,
    max_position_embeddings=131072,
    mlp_bias=False,
    num_attention_heads=32,
    num_hidden_layers=16,
    num_key_value_heads=8,
    pretraining_tp=1,
    rms_norm_eps=1e-05,
    rope_scaling=dict(
      factor=32.0,
      high_freq_factor=4.0,
      low_freq_factor=1.0,
      original_max_position_embeddings=8192,
      rope_type='llama3',
    ),
    rope_theta=500000.0,
    tie_word_embeddings=True,
    vocab_size=128256,
  ),
  'Mistral-7B': dict(
    model_type='mistral',
    hidden_act='silu',
    hidden_size=4096,
    intermediate_size=14336,
    max_position_embeddings=32768,
    num_attention_heads=32,
    num_hidden_layers=32,
    num_key_value_heads=8,
    rms_norm_eps=1e-05,
    rope_theta=10000.0,
    sliding_window=4096,
    tie_word_embeddings=False,
    vocab_size=32000,
  ),
  'Qwen2.5-0.5B': dict(
    model_type='qwen2',
    hidden_act='silu',
    hidden_size=896,
    intermediate_size=4864,
    max_position_embeddings=32768,
    max_window_layers=24,
    num_attention_heads=14,
    num_hidden_layers=24,
    num_key_value_heads=2,
    rms_norm_eps=1e-06,
    rope_theta=1000000.0,
    sliding_window=32768,
    tie_word_embeddings=True,
    use_sliding_window=False,
    vocab_size=151936,
  ),
  'Qwen3-0.6B': dict(
    model_type='qwen3',
    attention_bias=False,
    head_dim=128,
    hidden_act='silu',
    hidden_size=1024,
    intermediate_size=3072,
    max_position_embeddings=40960,
    max_window_layers=28,
    num_attention_heads=16,
    num_hidden_layers=28,
    num_key_value_heads=8,
    rms_norm_eps=1e-06,
    rope_scaling=None,
    rope_theta=1000000,
    sliding_window=None,
    tie_word_embeddings=True,
    use_sliding_window=False,
    vocab_size=151936,
  ),
  'gemma-2-2b': dict(
    model_type='gemma2',
    attention_bias=False,
    attn_logit_softcapping=50.0,
    final_logit_softcapping=30.0,
    head_dim=256,
    hidden_act='gelu_pytorch_tanh',
    hidden_activation='gelu_pytorch_tanh',
    hidden_size=2304,
    intermediate_size=9216,
    max_position_embeddings=8192,
    num_attention_heads=8,
    num_hidden_layers=26,
    num_key_value_heads=4,
    query_pre_attn_scalar=256,
    rms_norm_eps=1e-06,
    rope_theta=10000.0,
    sliding_window=4096,
    vocab_size=256000,
  ),
  'gemma-3-270m': dict(
    model_type='gemma3_text',
    attention_bias=False,
    attn_logit_softcapping=None,
    final_logit_softcapping=None,
    head_dim=256,
    hidden_activation='gelu_pytorch_tanh',
    hidden_size=640,
    intermediate_size=2048,
    max_position_embeddings=32768,
    num_attention_heads=4,
    num_hidden_layers=18,
    num_key_value_heads=1,
    query_pre_attn_scalar=256,
    rms_norm_eps=1e-06,
    rope_local_base_freq=10000.0,
    rope_scaling=None,
    rope_theta=1000000.0,
    sliding_window=512,
    use_bidirectional_attention=False,
    vocab_size=262144,
  ),
}


def _read(values):
  return mapping.read_config(families.of_model_type(values).hf, values)


def _as_transformers_5(values):
  named = {k: v for k, v in values.items() if k != 'model_type'}
  return transformers.AutoConfig.for_model(
    values['model_type'], **named
  ).to_dict()


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_configs_are_the_presets_in_both_spellings(name):
  values = PUBLISHED[name]
  assert _read(values) == presets.get(name)
  newer = _as_transformers_5(values)
  assert ('rope_parameters' in newer) == (values['model_type'] != 'gptj')
  assert _read(newer) == presets.get(name)


def test_all_but_the_last_windows_of_qwen():
  """Layers from max_window_layers on are local if there is no layer_types."""
  values = PUBLISHED['Qwen2.5-0.5B'] | dict(
    use_sliding_window=True, max_window_layers=20
  )
  config = _read(values)
  assert config.local_layers == (False,) * 20 + (True,) * 4
  assert config.window == 32768
  assert _read(_as_transformers_5(values)) == config


def test_the_pattern_of_older_gemmas():
  values = PUBLISHED['gemma-3-270m'] | {'sliding_window_pattern': 3}
  assert _read(values).local_layers == (True, True, False) * 6
  older = PUBLISHED['gemma-3-270m'] | {'rope_local_base_freq': 7.0}
  assert _read(older).local_rope_theta == 7.0


def test_scaling_of_local_layers_survives():
  config = dataclasses.replace(
    presets.get('gemma-3-270m'),
    rope_scaling=models.RopeScaling(kind='linear', factor=8.0),
    local_rope_scaling=models.RopeScaling(kind='linear', factor=2.0),
  )
  family, values = families.of_config(config)
  assert family.name == 'gemma3_text'
  assert _read(values | {'model_type': 'gemma3_text'}) == config
  theirs = transformers.AutoConfig.for_model('gemma3_text', **values)
  ropes = theirs.rope_parameters
  assert ropes['full_attention']['factor'] == 8.0
  assert ropes['sliding_attention']['factor'] == 2.0


@pytest.mark.parametrize(
  ('name', 'changes', 'words'),
  [
    ('Llama-3.2-1B', {'sliding_window': 4096}, 'sliding_window = 4096'),
    ('Mistral-7B', {'layer_types': ['full_attention'] * 32}, 'layer_types'),
    (
      'Qwen3-0.6B',
      {
        'layer_types': ['chunked_attention'] * 28,
        'use_sliding_window': True,
      },
      r'chunked_attention.*full_attention',
    ),
    (
      'gemma-3-270m',
      {'use_bidirectional_attention': True},
      'use_bidirectional_attention',
    ),
    (
      'gemma-3-270m',
      {'attn_logit_softcapping': 50.0},
      'attn_logit_softcapping',
    ),
    ('gemma-2-2b', {'rope_scaling': {'type': 'yarn'}}, r'rope_type.*yarn'),
    ('pythia-2.8b', {'num_attention_heads': 33}, 'not a multiple'),
    ('pythia-2.8b', {'rope_scaling': {'type': 'dynamic'}}, 'dynamic'),
    ('gpt-j-6b', {'quantization_config': {'bits': 4}}, 'quantization_config'),
    ('gpt-j-6b', {'rotary_dim': 63}, 'rotary_dim is 63'),
  ],
)
def test_unsupported_options_are_named(name, changes, words):
  with pytest.raises(ValueError, match=words):
    _read(PUBLISHED[name] | changes)


@pytest.mark.parametrize(
  ('model_type', 'words'),
  [
    ('mixtral', r"is 'mistral', which has no .*num_local_experts = 8"),
    ('qwen2_moe', r"is 'qwen2', which has no .*num_experts = 60"),
    ('qwen3_moe', r"is 'qwen3', which has no .*num_experts_per_tok = 8"),
    ('phi', r'which has no .*layer_norm_eps'),
    ('gpt_bigcode', r"is 'gpt2', which has no .*multi_query = True"),
    ('gpt_neo', r'which has no .*attention_layers = '),
    ('olmo2', r"is 'llama', but the code differs"),
  ],
)
def test_unsupported_families_name_the_closest_and_what_it_lacks(
  model_type, words
):
  """The closest family shares the most fields, whatever its name."""
  values = transformers.AutoConfig.for_model(model_type).to_dict()
  with pytest.raises(ValueError, match=f'{model_type!r} is not .*{words}'):
    families.of_model_type(values)
  values['model_type'] = 'unheard_of'
  with pytest.raises(ValueError, match=f'unheard_of.*{words}'):
    families.of_model_type(values)


def test_the_text_model_of_a_folder_for_images(tmp_path):
  text = peers.make('gemma3_text', tie_word_embeddings=True)
  text.save_pretrained(tmp_path / 'text')
  vision = dict(
    hidden_size=16,
    intermediate_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    image_size=28,
    patch_size=14,
  )
  config = transformers.Gemma3Config(
    text_config=text.config.to_dict(), vision_config=vision
  )
  both = transformers.Gemma3ForConditionalGeneration(config)
  both.model.language_model.load_state_dict(text.model.state_dict())
  both.save_pretrained(tmp_path / 'both')
  config, params = weights.load(tmp_path / 'both')
  expected_config, expected = weights.load(tmp_path / 'text')
  assert config == expected_config
  jax.tree.map(np.testing.assert_array_equal, params, expected)
