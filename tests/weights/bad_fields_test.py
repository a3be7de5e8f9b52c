"""Errors for invalid fields of config.json."""

import json

import numpy as np
import pytest
import torch
from transformers import activations

from dpo_jax import models, weights
from dpo_jax.models import layers
from dpo_jax.weights import families, gpt_neox, mapping
from tests.weights import families_config_test, peers

PUBLISHED = families_config_test.PUBLISHED


@pytest.mark.parametrize(
  ('name', 'changes', 'words'),
  [
    ('Llama-3.2-1B', {'num_key_value_heads': 0}, 'num_key_value_heads is 0'),
    ('Llama-3.2-1B', {'num_attention_heads': 0}, 'num_attention_heads is 0'),
    ('Llama-3.2-1B', {'hidden_size': '32'}, "hidden_size is '32'"),
    ('Llama-3.2-1B', {'num_hidden_layers': True}, 'num_hidden_layers is True'),
    ('Llama-3.2-1B', {'rms_norm_eps': None}, 'rms_norm_eps is None'),
    ('Llama-3.2-1B', {'rms_norm_eps': '1e-5'}, "rms_norm_eps is '1e-5'"),
    ('Llama-3.2-1B', {'rope_scaling': 'linear'}, "rope_scaling is 'linear'"),
    (
      'Llama-3.2-1B',
      {'rope_scaling': {'type': 'linear', 'factor': '4'}},
      "factor is '4'; expected a number",
    ),
    ('gemma-3-270m', {'layer_types': ['sliding_attention']}, '1 entries'),
    ('gemma-3-270m', {'final_logit_softcapping': 0.0}, 'softcapping is 0.0'),
    ('gemma-3-270m', {'sliding_window': '5'}, "window is '5'"),
    (
      'gemma-3-270m',
      {'rope_parameters': {'rope_theta': 1e6}},
      'has rope_theta; expected objects for full_attention and sliding',
    ),
    ('gpt-j-6b', {'rotary_dim': None}, 'rotary_dim is None'),
    ('gpt-j-6b', {'n_head': 0}, 'n_head is 0'),
    ('gpt-j-6b', {'n_embd': '32'}, "n_embd is '32'"),
  ],
)
def test_bad_fields_are_named_as_the_file_names_them(name, changes, words):
  with pytest.raises(ValueError, match=words):
    families_config_test._read(PUBLISHED[name] | changes)


def test_a_config_without_a_model_type():
  values = {**PUBLISHED['Llama-3.2-1B']}
  del values['model_type']
  with pytest.raises(ValueError, match=r"has no 'model_type'.*'llama'"):
    families.of_model_type(values)


def test_a_folder_of_gguf_files_says_to_name_one(tmp_path):
  (tmp_path / 'x-Q4.gguf').write_bytes(b'')
  with pytest.raises(ValueError, match=r"give its path: '.*/x-Q4\.gguf'"):
    weights.load(tmp_path)


def test_the_share_that_is_rotated_survives_truncation():
  """rotary_pct for every even rotary_dim of heads up to 256."""
  config = models.presets.get('pythia-2.8b')
  for head_dim in range(2, 257):
    for rotated in range(2, head_dim + 1, 2):
      sizes = _Sizes(head_dim, rotated, config)
      share = gpt_neox._extra(sizes)['rotary_pct']
      assert int(head_dim * share) == rotated and share <= 1


class _Sizes:
  """The fields that are written; a ModelConfig would check its values."""

  def __init__(self, head_dim, rotary_dim, config):
    self.head_dim, self.rotary_dim = head_dim, rotary_dim
    self.rope_theta, self.rope_scaling = config.rope_theta, None


@pytest.mark.parametrize('name', mapping.ACTIVATIONS)
def test_activations_are_those_of_transformers(name):
  x = np.linspace(-6, 6, 241, dtype=np.float32)
  theirs = activations.ACT2FN[name](torch.from_numpy(x)).numpy()
  ours = layers.ACTIVATIONS[mapping.ACTIVATIONS[name]](x)
  np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=2e-6)


def test_suggestions_reach_into_a_section(tmp_path):
  """The text model of a folder for images has its fields below text_config."""
  text = peers.make('gemma3_text', tie_word_embeddings=True)
  text.save_pretrained(tmp_path)
  path = tmp_path / 'config.json'
  values = json.loads(path.read_text()) | {'intermediate_size': 8}
  path.write_text(json.dumps({'model_type': 'gemma3', 'text_config': values}))
  with pytest.raises(
    ValueError,
    match=r'suggest in text_config intermediate_size = 40 \(not 8\)\.',
  ):
    weights.load(tmp_path)
