"""Scorers: what their authors published, and shares with their intervals."""

import builtins

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
