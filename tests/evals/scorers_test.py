"""Scorers against published scores; shares and their intervals."""

import builtins
import importlib.util

import numpy as np
import pytest

from dpo_jax.evals import scorers

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
  vader = scorers.SCORERS['vader']()
  assert vader.name == 'vader' and vader.positive == 0.05
  for text, compound in PUBLISHED.items():
    assert vader.score(text) == pytest.approx(compound, abs=1e-4)
  assert vader.score('') == 0


def test_a_missing_package_is_named(monkeypatch):
  real = builtins.__import__

  def refuse(name, *args, **kwargs):
    if name.startswith('vaderSentiment'):
      raise ImportError(name)
    return real(name, *args, **kwargs)

  monkeypatch.setattr(builtins, '__import__', refuse)
  with pytest.raises(ValueError, match='pip install vaderSentiment'):
    scorers.vader()


def test_statistics_count_what_reaches_the_threshold():
  scorer = scorers.Scorer('made_up', len, 0.05)
  scores = [0.05, 0.9, 0.049999, -0.3, 0.0]
  found = scorers.statistics(scorer, scores)
  assert found['made_up'] == pytest.approx(np.mean(scores))
  assert found['made_up_positive'] == 2 / 5
  half = 1.959964 * np.std(scores, ddof=1) / np.sqrt(5)
  assert found['made_up_low'] == pytest.approx(np.mean(scores) - half)
  assert found['made_up_high'] == pytest.approx(np.mean(scores) + half)
  # Wilson's interval of 2 of 5: E.B. Wilson, J. Am. Stat. Assoc. 22, 1927.
  assert found['made_up_positive_low'] == pytest.approx(0.1176, abs=1e-4)
  assert found['made_up_positive_high'] == pytest.approx(0.7693, abs=1e-4)


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
  positive = scorers.make(dict(name='classifier', **options))
  assert positive.name == 'classifier' and positive.positive == 0.5
  assert positive.score_all(texts) == pytest.approx(expected, abs=1e-5)
  assert positive.score(texts[0]) == pytest.approx(expected[0], abs=1e-5)
  negative = scorers.make(dict(name='classifier', label='NEGATIVE', **options))
  found = negative.score_all(texts)
  assert np.add(found, expected) == pytest.approx(np.ones(4), abs=1e-5)
  assert max(expected) - min(expected) > 0.01


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    (dict(label='positive'), r"'positive'.*NEGATIVE, POSITIVE"),
    # The model has 16 positions.
    (dict(max_length=17), r'up to 17 tokens \(scorer\.max_length\)'),
    (dict(model='.'), r"scorer\.model '\.'"),
  ],
)
def test_preparing_finds_what_scoring_would(
  options, message, classifier_folder, tmp_path, monkeypatch
):
  folder, _, _ = classifier_folder
  right = dict(name='classifier', model=str(folder), max_length=16)
  scorers.make(right).prepare()
  scorers.make('vader').prepare()
  monkeypatch.chdir(tmp_path)
  wrong = scorers.make(right | options)
  with pytest.raises(ValueError, match=message):
    wrong.prepare()
  with pytest.raises(ValueError, match=message):
    wrong.score('good')


def test_a_classifier_needs_its_packages(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(ValueError, match='pip install torch transformers'):
    scorers.make('classifier')


def test_scorers_are_made_by_name():
  assert scorers.make('vader').name == 'vader'
  texts = ['The book was good.', 'Today SUX!']
  assert scorers.make(dict(name='vader')).score_all(texts) == [
    PUBLISHED[text] for text in texts
  ]
  with pytest.raises(ValueError, match="Did you mean 'vader'"):
    scorers.make('vade')
  with pytest.raises(ValueError, match="Did you mean 'batch_size'"):
    scorers.make(dict(name='classifier', batchsize=3))
