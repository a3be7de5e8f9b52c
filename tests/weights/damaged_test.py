"""Errors for truncated or damaged checkpoints, and for unsavable models."""

import json
import os

import jax
import numpy as np
import pytest

from dpo_jax import weights
from dpo_jax.models import specs
from tests.weights import gguf_file_test, hf_weights_test

_CONFIG = hf_weights_test._CONFIG
_SINGLE, _INDEX = 'model.safetensors', 'model.safetensors.index.json'


def _save(folder, **options):
  params = specs.init(jax.random.key(0), _CONFIG)
  weights.save(folder, _CONFIG, params, **options)
  return folder


def _cut(path, size):
  path.write_bytes(path.read_bytes()[:size])


@pytest.mark.parametrize('size', [0, 5, 8, 50, 1000, 5000, -1])
def test_cut_safetensors_are_named(tmp_path, size):
  _cut(_save(tmp_path / 'x') / _SINGLE, size)
  with pytest.raises(ValueError, match=rf'x/{_SINGLE}.*fetch it again'):
    weights.load(tmp_path / 'x')


@pytest.mark.parametrize('name', ['config.json', _INDEX])
@pytest.mark.parametrize('size', [0, 1, 40, 100, -3])
def test_cut_json_is_named(tmp_path, name, size):
  _cut(_save(tmp_path / 'x', max_shard_bytes=3000) / name, size)
  with pytest.raises(ValueError, match=rf'x/{name}.*fetch it again'):
    weights.load(tmp_path / 'x')


@pytest.mark.parametrize('content', [{}, {'weight_map': ['a']}])
def test_an_index_without_its_table(tmp_path, content):
  folder = _save(tmp_path / 'x', max_shard_bytes=3000)
  (folder / _INDEX).write_text(json.dumps(content))
  with pytest.raises(ValueError, match=r"index\.json.*'weight_map'"):
    weights.load(folder)


def test_cut_gguf_files_are_named(tmp_path):
  path = tmp_path / 'x.gguf'
  tensors = gguf_file_test._llama_tensors(np.random.default_rng(0))
  gguf_file_test._write(path, tensors)
  data = path.read_bytes()
  header = data.index(b'blk.1.attn_norm')
  for size in [*range(0, header, 13), header, len(data) // 2, len(data) - 32]:
    path.write_bytes(data[:size])
    with pytest.raises(ValueError, match=r'x\.gguf.*fetch it again'):
      weights.load(path)


@pytest.mark.parametrize('name', ['config.json', _SINGLE])
def test_a_directory_where_a_file_is_expected(tmp_path, name):
  folder = _save(tmp_path / 'x')
  (folder / name).unlink()
  (folder / name).mkdir()
  with pytest.raises((ValueError, OSError), match=f'x/{name}'):
    weights.load(folder)


def test_a_folder_with_the_name_of_a_file(tmp_path):
  _save(tmp_path / 'x.gguf')
  assert weights.load(tmp_path / 'x.gguf')[0] == _CONFIG


@pytest.mark.skipif(os.geteuid() == 0, reason='root may read anything')
@pytest.mark.parametrize('name', ['config.json', _SINGLE])
def test_a_file_that_may_not_be_read(tmp_path, name):
  folder = _save(tmp_path / 'x')
  (folder / name).chmod(0)
  with pytest.raises((ValueError, OSError), match=f'x/{name}'):
    weights.load(folder)


def test_what_cannot_be_saved_is_known_before_training(tmp_path):
  """Biases of q, k and v but not of o: llama's config.json cannot say so."""
  rng = np.random.default_rng(0)
  tensors = gguf_file_test._llama_tensors(rng, biases=True)
  weights.check_savable(_CONFIG)
  for qkv_alone in (False, True):
    if qkv_alone:
      tensors = {
        name: value
        for name, value in tensors.items()
        if not name.endswith('attn_output.bias')
      }
    gguf_file_test._write(tmp_path / 'x.gguf', tensors)
    config, params = weights.load(tmp_path / 'x.gguf')
    if not qkv_alone:
      weights.check_savable(config)
      continue
    with pytest.raises(ValueError, match='attention_out_bias') as early:
      weights.check_savable(config)
    with pytest.raises(ValueError) as late:
      weights.save(tmp_path / 'out', config, params)
    assert str(early.value) == str(late.value)
