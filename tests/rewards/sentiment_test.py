"""Sentiment rewards against published scores and against torch."""

import builtins
import importlib.util

import numpy as np
import pytest

from dpo_jax import rewards
from dpo_jax.rewards import sentiment

# From the package's README; its scores are published for these sentences.
PUBLISHED = {
  'VADER is smart, handsome, and funny.': 0.8316,
  'VADER is not smart, handsome, nor funny.': -0.7424,
  'The book was good.': 0.4404,
  'The plot was good, but the characters are uncompelling and the dialog is '
  'not great.': -0.7042,
  'Today SUX!': -0.5461,
}


def test_vader_gives_its_published_scores():
  vader = rewards.build('vader')
  assert vader.name == 'vader' and vader.positive == 0.05
  for text, compound in PUBLISHED.items():
    assert vader([''], [text]) == pytest.approx([compound], abs=1e-4)
  assert vader([''], ['']) == [0]


def test_a_missing_package_is_named(monkeypatch):
  real = builtins.__import__

  def refuse(name, *args, **kwargs):
    if name.startswith('vaderSentiment'):
      raise ImportError(name)
    return real(name, *args, **kwargs)

  monkeypatch.setattr(builtins, '__import__', refuse)
  with pytest.raises(ValueError, match='pip install vaderSentiment'):
    sentiment.vader()


@pytest.mark.parametrize('sees', ['completion', 'both'])
def test_what_is_seen_is_an_option(sees):
  prompts, completions = ['The book was not', 'Not'], [' good.', ' that great!']
  vader = rewards.build(dict(name='vader', sees=sees))
  alone = rewards.build('vader')
  both = [p + c for p, c in zip(prompts, completions)]
  texts = dict(completion=completions, both=both)[sees]
  found = vader(prompts, completions)
  np.testing.assert_array_equal(found, alone(['x'] * 2, texts))
  assert (found[0] < 0) == (sees == 'both')
  with pytest.raises(ValueError, match=r"Unknown reward\.sees 'prompt'"):
    rewards.build(dict(name='vader', sees='prompt'))


# Classifiers.


@pytest.fixture(scope='module')
def classifier_folder(tmp_path_factory):
  """A random text classifier, as transformers saves it."""
  import tokenizers
  import torch
  import transformers

  folder = tmp_path_factory.mktemp('classifier')
  words = ['<pad>', '<unk>', 'good', 'bad', 'film', 'a']
  backend = tokenizers.Tokenizer(
    tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, '<unk>')
  )
  backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend, pad_token='<pad>', unk_token='<unk>'
  ).save_pretrained(folder)
  torch.manual_seed(0)
  config = transformers.DistilBertConfig(
    vocab_size=len(words),
    dim=8,
    hidden_dim=16,
    n_layers=1,
    n_heads=2,
    max_position_embeddings=16,
    id2label={0: 'NEGATIVE', 1: 'POSITIVE'},
    label2id={'NEGATIVE': 0, 'POSITIVE': 1},
    initializer_range=1.0,
  )
  model = transformers.DistilBertForSequenceClassification(config).eval()
  model.save_pretrained(folder)
  return folder, backend, model


def test_a_classifier_gives_the_probability_of_its_class(classifier_folder):
  import torch

  folder, backend, model = classifier_folder
  texts = ['good film', 'bad', 'a film', 'good ' * 40]
  expected = []
  for text in texts:
    ids = torch.tensor([backend.encode(text).ids[:16]])
    with torch.no_grad():
      expected.append(float(model(ids).logits.softmax(-1)[0, 1]))
  options = dict(model=str(folder), max_length=16, batch_size=2)
  positive = rewards.build(dict(name='classifier', **options))
  assert positive.name == 'classifier' and positive.positive == 0.5
  prompts = [''] * 4
  found = positive(prompts, texts)
  assert found == pytest.approx(expected, abs=1e-5)
  assert positive([''], texts[:1]) == pytest.approx(expected[:1], abs=1e-5)
  negative = rewards.build(dict(name='classifier', label='NEGATIVE', **options))
  found = negative(prompts, texts)
  assert np.add(found, expected) == pytest.approx(np.ones(4), abs=1e-5)
  assert max(expected) - min(expected) > 0.01


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    (dict(label='positive'), r"'positive'.*NEGATIVE, POSITIVE"),
    # The model has 16 positions.
    (dict(max_length=17), r'up to 17 tokens \(reward\.max_length\)'),
    (dict(model='.'), r"reward\.model '\.'"),
  ],
)
def test_loading_finds_what_scoring_would(
  options, message, classifier_folder, tmp_path, monkeypatch
):
  folder, _, _ = classifier_folder
  right = dict(name='classifier', model=str(folder), max_length=16)
  for section in (right, 'vader'):
    loaded = rewards.build(section)([], [])
    assert loaded.shape == (0,) and loaded.dtype == np.float32
  monkeypatch.chdir(tmp_path)
  wrong = rewards.build(right | options)
  with pytest.raises(ValueError, match=message):
    wrong([], [])
  with pytest.raises(ValueError, match=message):
    wrong.fn([''], ['good'])


def test_a_classifier_needs_its_packages(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(ValueError, match='pip install torch transformers'):
    rewards.build('classifier')


def test_rewards_are_built_by_name():
  assert rewards.build('vader').name == 'vader'
  texts = ['The book was good.', 'Today SUX!']
  found = rewards.build(dict(name='vader'))(['', ''], texts)
  assert rewards.as_json(found) == [PUBLISHED[text] for text in texts]
  with pytest.raises(ValueError, match="Did you mean 'vader'"):
    rewards.build('vade')
  with pytest.raises(ValueError, match="Did you mean 'batch_size'"):
    rewards.build(dict(name='classifier', batchsize=3))
