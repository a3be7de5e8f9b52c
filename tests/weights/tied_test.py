"""Checkpoints with tied embeddings that also store an unembedding."""

import json

import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from dpo_jax import weights
from dpo_jax.models import specs
from dpo_jax.weights import safetensors_file
from tests.weights import hf_weights_test

_CONFIG = hf_weights_test._CONFIG
_HEAD, _TOKENS = 'lm_head.weight', 'model.embed_tokens.weight'


@pytest.fixture(params=['float32', 'bfloat16'])
def folder(request, tmp_path):
  """An untied checkpoint whose config.json says tie_word_embeddings."""
  params = specs.init(jax.random.key(0), _CONFIG)
  weights.save(tmp_path / 'x', _CONFIG, params, dtype=np.dtype(request.param))
  path = tmp_path / 'x' / 'config.json'
  values = json.loads(path.read_text()) | {'tie_word_embeddings': True}
  path.write_text(json.dumps(values))
  return tmp_path / 'x'


def _change(folder, change):
  path = folder / 'model.safetensors'
  tensors = safetensors_numpy.load_file(path)
  change(tensors)
  safetensors_numpy.save_file(tensors, path)


def test_a_head_of_its_own_is_not_dropped(folder, monkeypatch):
  monkeypatch.setattr(safetensors_file, '_ROWS', 7)
  with pytest.raises(ValueError, match=f'{_HEAD}.*tie_word_embeddings=false'):
    weights.load(folder)

  def copy(tensors):
    tensors[_HEAD] = tensors[_TOKENS].copy()

  _change(folder, copy)
  config, params = weights.load(folder)
  assert config.tie_embeddings and 'unembed' not in params
  # One value in the last rows, which no whole block covers.
  _change(folder, lambda tensors: np.put(tensors[_HEAD], -1, 3.0))
  with pytest.raises(ValueError, match=f'{_HEAD}.*tie_word_embeddings=false'):
    weights.load(folder)
  _change(folder, lambda t: t.update({_HEAD: t[_TOKENS][:-1].copy()}))
  with pytest.raises(ValueError, match=f'{_HEAD}.*tie_word_embeddings=false'):
    weights.load(folder)
