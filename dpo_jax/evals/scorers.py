"""Scorers: text -> a number, to judge samples with what training never saw."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from dpo_jax.training import metrics


class Scorer(NamedTuple):
  """score(text) -> [-1, 1]; from `positive` on a text counts as positive."""

  name: str
  score: Callable[[str], float]
  positive: float


def vader() -> Scorer:
  """The compound sentiment of VADER 3.3, and its authors' threshold.

  C.J. Hutto and E. Gilbert, ICWSM 2014: a lexicon and rules, English only. 0
  for a text without a word that it knows. ValueError without the package.
  """
  try:
    from vaderSentiment import vaderSentiment
  except ImportError as error:
    raise ValueError(
      "The scorer 'vader' needs the package vaderSentiment: "
      'pip install vaderSentiment'
    ) from error
  analyzer = vaderSentiment.SentimentIntensityAnalyzer()
  return Scorer(
    'vader', lambda text: analyzer.polarity_scores(text)['compound'], 0.05
  )


SCORERS: dict[str, Callable[[], Scorer]] = {'vader': vader}


def statistics(scorer: Scorer, scores: Sequence[float]) -> dict[str, float]:
  """Mean score and share of positive texts, with 95 % intervals.

  Under the scorer's name and that with '_positive', as '_low' and '_high':
  normal for the mean, Wilson's for the share.
  """
  x = np.asarray(scores, np.float64)
  positive = int((x >= scorer.positive).sum())
  out = {
    scorer.name: float(x.mean()),
    f'{scorer.name}_positive': positive / len(x),
  }
  for name, (low, high) in (
    (scorer.name, metrics.normal_interval(x.sum(), len(x), (x * x).sum())),
    (f'{scorer.name}_positive', metrics.wilson_interval(positive, len(x))),
  ):
    out[f'{name}_low'], out[f'{name}_high'] = low, high
  return out
