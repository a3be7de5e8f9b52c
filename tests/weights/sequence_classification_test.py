"""Reward models in the layout of `transformers`' sequence classifiers."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from dpo_jax import models, weights
from dpo_jax.weights import families, gguf_file, mapping
from tests import forests
from tests.weights import peers

PAD = 90


def _peer(name, **changes):
  """A tiny reward model of `transformers`."""
  return peers.make(
    name,
    kind=transformers.AutoModelForSequenceClassification,
    **dict(num_labels=1, pad_token_id=PAD) | changes,
  )


def _rewards(peer, ids_BxL):
  with torch.no_grad():
    return peer(torch.as_tensor(ids_BxL)).logits[:, 0].numpy()


@pytest.mark.parametrize('name', peers.OPTIONS)
def test_a_classifier_of_one_label_is_a_scalar_model_and_back(name, tmp_path):
  peer = _peer(name)
  peer.save_pretrained(tmp_path / 'peer')
  config, params = weights.load(tmp_path / 'peer')
  assert config.head == 'scalar'

  # Two sequences, the second padded on the right.
  ids_BxL = np.random.default_rng(0).integers(0, PAD, (2, 12))
  ids_BxL[1, 7:] = PAD
  hidden = models.forward(params, config, jnp.asarray(ids_BxL))
  values_BxL = models.scalar(params, config, hidden)
  ours = values_BxL[np.arange(2), np.array([11, 6])]
  theirs = _rewards(peer, ids_BxL)
  assert np.abs(theirs).max() > 0.1
  np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)

  weights.save(tmp_path / 'ours', config, params, pad_id=PAD)
  again, info = transformers.AutoModelForSequenceClassification.from_pretrained(
    tmp_path / 'ours', output_loading_info=True
  )
  assert not any(info[k] for k in ('missing_keys', 'unexpected_keys'))
  assert type(again) is type(peer) and again.config.num_labels == 1
  np.testing.assert_array_equal(_rewards(again.eval(), ids_BxL), theirs)
  read, values = weights.load(tmp_path / 'ours')
  assert read == config
  jax.tree.map(np.testing.assert_array_equal, values, params)


def test_a_language_model_becomes_a_classifier(tmp_path):
  """Tied embeddings: their table stays, without an unembedding beside it."""
  assert forests.CONFIG.tie_embeddings
  config, params = models.with_scalar_head(
    forests.CONFIG, forests.params(0), jax.random.key(0), stddev=1.0
  )
  weights.check_savable(config)
  weights.save(tmp_path / 'x', config, params, eos_id=2, pad_id=1)
  peer, info = transformers.AutoModelForSequenceClassification.from_pretrained(
    tmp_path / 'x', output_loading_info=True
  )
  assert not any(info[k] for k in ('missing_keys', 'unexpected_keys'))
  ids = np.arange(5, 14)[None]
  hidden = models.forward(params, config, jnp.asarray(ids))
  ours = models.scalar(params, config, hidden)[:, -1]
  np.testing.assert_allclose(ours, _rewards(peer.eval(), ids), rtol=1e-4)


def test_the_text_model_of_gemma_3_with_images_is_read(tmp_path):
  text = dict(peers.OPTIONS['gemma3_text'], tie_word_embeddings=True)
  vision = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1)
  vision |= dict(num_attention_heads=2, image_size=28, patch_size=14)
  config = transformers.Gemma3Config(
    text_config=text, vision_config=vision, num_labels=1, pad_token_id=PAD
  )
  torch.manual_seed(0)
  peer = transformers.Gemma3ForSequenceClassification(config).eval()
  peer.save_pretrained(tmp_path)
  config, params = weights.load(tmp_path)
  ids = np.arange(5, 14)[None]
  hidden = models.forward(params, config, jnp.asarray(ids))
  ours = models.scalar(params, config, hidden)[:, -1]
  np.testing.assert_allclose(ours, _rewards(peer, ids), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('num_labels', [2, 3])
def test_several_labels_are_an_error(num_labels, tmp_path):
  _peer('llama', num_labels=num_labels).save_pretrained(tmp_path)
  text = f'LlamaForSequenceClassification of {num_labels} labels'
  with pytest.raises(ValueError, match=text):
    weights.load(tmp_path)


def _change_config(folder, **changes):
  path = folder / 'config.json'
  values = json.loads(path.read_text()) | changes
  path.write_text(json.dumps(values))


def test_tensors_of_the_other_head_are_an_error(tmp_path):
  _peer('llama').save_pretrained(tmp_path / 'reward')
  _change_config(tmp_path / 'reward', architectures=['LlamaForCausalLM'])
  with pytest.raises(ValueError, match=r'unexpected score\.weight'):
    weights.load(tmp_path / 'reward')
  peers.make('llama').save_pretrained(tmp_path / 'language')
  _change_config(
    tmp_path / 'language',
    architectures=['LlamaForSequenceClassification'],
    num_labels=1,
  )
  with pytest.raises(ValueError, match=r'missing score\.weight'):
    weights.load(tmp_path / 'language')


def test_padding_that_is_an_eos_is_an_error(tmp_path):
  config, params = models.with_scalar_head(
    forests.CONFIG, forests.params(0), jax.random.key(0), stddev=1.0
  )
  for eos_id in (3, (7, 3)):
    with pytest.raises(ValueError, match='pad_id 3 is an EOS'):
      weights.save(tmp_path / 'x', config, params, eos_id=eos_id, pad_id=3)
  assert not (tmp_path / 'x').exists()


def test_every_written_family_names_its_classifier():
  for family in families.FAMILIES.values():
    assert hasattr(transformers, family.classifier)
    assert mapping.SCORE in family.hf.tensor_maps


def test_a_classifier_in_a_gguf_file_is_an_error(tmp_path):
  import gguf

  path = tmp_path / 'reranker.gguf'
  writer = gguf.GGUFWriter(path, 'qwen2')
  for name in ('token_embd.weight', 'cls.weight'):
    writer.add_tensor(name, np.zeros((4, 32), np.float32))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  with pytest.raises(ValueError, match=r'has cls\.weight: it is a classifier'):
    gguf_file.read(path)
