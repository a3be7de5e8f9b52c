"""Errors for tensors that do not match the config, with suggested fields."""

import json
import re

import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from dpo_jax import models, weights
from tests.weights import gguf_file_test

_COMMON = dict(
  vocab_size=40,
  num_layers=3,
  d_model=16,
  num_heads=4,
  head_dim=4,
  d_ff=24,
  max_positions=64,
)
_LLAMA = models.ModelConfig(**_COMMON, num_kv_heads=2)
_GPT2 = models.ModelConfig(
  **_COMMON,
  num_kv_heads=4,
  norm='layer',
  positions='learned',
  activation='gelu_tanh',
  gated_mlp=False,
  attention_bias=True,
  attention_out_bias=True,
  mlp_bias=True,
  tie_embeddings=True,
)


def _load_with(tmp_path, config, changes) -> str:
  """The error of loading a checkpoint whose config.json was changed."""
  folder = tmp_path / 'x'
  weights.save(folder, config, models.init(jax.random.key(0), config))
  values = json.loads((folder / 'config.json').read_text())
  assert changes.keys() <= values.keys()
  (folder / 'config.json').write_text(json.dumps(values | changes))
  with pytest.raises(ValueError, match='does not match its config') as error:
    weights.load(folder)
  return str(error.value)


@pytest.mark.parametrize(
  ('config', 'changes', 'right'),
  [
    (_LLAMA, {'vocab_size': 41}, 'vocab_size = 40 (not 41)'),
    (_LLAMA, {'intermediate_size': 8}, 'intermediate_size = 24 (not 8)'),
    (_LLAMA, {'num_hidden_layers': 2}, 'num_hidden_layers = 3 (not 2)'),
    (_LLAMA, {'num_hidden_layers': 12}, 'num_hidden_layers = 3 (not 12)'),
    (_LLAMA, {'hidden_size': 32}, 'hidden_size = 16 (not 32)'),
    (_LLAMA, {'head_dim': 8}, 'head_dim = 4 (not 8)'),
    (_LLAMA, {'num_key_value_heads': 4}, 'num_key_value_heads = 2 (not 4)'),
    (
      _LLAMA,
      {'attention_bias': True},
      'attention_bias = False (not True)',
    ),
    (
      _LLAMA,
      {'vocab_size': 80, 'intermediate_size': 48, 'num_hidden_layers': 4},
      ('intermediate_size = 24', 'num_hidden_layers = 3', 'vocab_size = 40'),
    ),
    (_GPT2, {'n_positions': 32}, 'n_positions = 64 (not 32)'),
    (_GPT2, {'n_embd': 32}, 'n_embd = 16 (not 32)'),
    (_GPT2, {'n_inner': None}, 'n_inner = 24 (not 64)'),
    (
      _GPT2,
      {'tie_word_embeddings': False},
      'tie_word_embeddings = True (not False)',
    ),
  ],
)
def test_the_shapes_tell_what_the_config_should_say(
  config, changes, right, tmp_path
):
  text = _load_with(tmp_path, config, changes)
  suggested = text.rpartition('The shapes suggest ')[2]
  assert 'still not fit' not in suggested
  for part in [right] if isinstance(right, str) else right:
    assert part in suggested
  # No other field is suggested.
  named = re.findall(r'(\w+) = ', suggested)
  assert sorted(named) == sorted(changes)


def test_both_inventories_are_shown_aligned(tmp_path):
  text = _load_with(
    tmp_path, _LLAMA, {'intermediate_size': 8, 'attention_bias': True}
  )
  assert (
    'wrong shape model.layers.1.mlp.up_proj.weight: expected (8, 16), '
    'found (24, 16)' in text
  )
  head, *rows = text.partition('All tensors:')[2].splitlines()
  columns = [head.index('expected'), head.index('found')]
  start = len('All tensors:')
  rows = {
    row[: columns[0] + start].strip(): row[columns[0] + start :].split('  ')
    for row in rows
    if row.startswith(('model.', 'lm_head'))
  }
  rows = {k: [x.strip() for x in v if x.strip()] for k, v in rows.items()}
  assert rows['model.embed_tokens.weight'] == ['(40, 16)', '(40, 16)']
  assert rows['model.layers.0-2.mlp.up_proj.weight'] == ['(8, 16)', '(24, 16)']
  assert rows['model.layers.0-2.self_attn.q_proj.bias'] == ['(16,)', '-']
  # Twelve of the config's kinds of tensors, and its four biases.
  assert len(rows) == 16


def test_what_no_field_explains_is_shown_alone(tmp_path):
  folder = tmp_path / 'x'
  weights.save(folder, _LLAMA, models.init(jax.random.key(0), _LLAMA))
  path = folder / 'model.safetensors'
  tensors = safetensors_numpy.load_file(path)
  tensors['model.norm.weight'] = np.ones((5,), np.float32)
  safetensors_numpy.save_file(tensors, path)
  with pytest.raises(
    ValueError, match=r'expected \(16,\), found \(5,\)'
  ) as error:
    weights.load(folder)
  assert 'The shapes suggest' not in str(error.value)


def test_a_gguf_file_in_its_own_words(tmp_path):
  tensors = gguf_file_test._llama_tensors(np.random.default_rng(0))
  fields = dict(block_count=3, feed_forward_length=64)
  gguf_file_test._write(tmp_path / 'x.gguf', tensors, **fields)
  with pytest.raises(ValueError, match='feed_forward_length = 96') as error:
    weights.load(tmp_path / 'x.gguf')
  assert 'block_count = 2 (not 3)' in str(error.value)
