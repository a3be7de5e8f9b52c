"""Scorers: text -> number, to judge samples by a measure not trained on."""

import functools
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dpo_jax import assets, registry
from dpo_jax.evals import likelihood

# The sentiment classifier of the DPO paper (arXiv:2305.18290, App. C.1).
SIEBERT = 'hf://siebert/sentiment-roberta-large-english'


class Scorer(NamedTuple):
  """score(text) -> a number in [-1, 1].

  positive: the score from which on a text counts as positive.
  batch: scores many texts at once; None: they are scored one by one.
  prepare: loads what scoring needs; ValueError if that fails.
  """

  name: str
  score: Callable[[str], float]
  positive: float
  batch: Callable[[Sequence[str]], list[float]] | None = None
  prepare: Callable[[], Any] = lambda: None

  def score_all(self, texts: Sequence[str]) -> list[float]:
    """The score of each text."""
    if self.batch is None:
      return [self.score(text) for text in texts]
    return self.batch(texts)


def vader() -> Scorer:
  """The compound sentiment of VADER 3.3, with its authors' threshold.

  C.J. Hutto and E. Gilbert, ICWSM 2014: a lexicon and rules, English only. A
  text without a word of the lexicon scores 0. ValueError if the package is not
  installed.
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


def classifier(
  *,
  model: str = SIEBERT,
  label: str = 'POSITIVE',
  batch_size: int = 16,
  max_length: int = 512,
) -> Scorer:
  """The probability that a text classifier gives to one of its classes.

  model: the URI (see `assets.resolve`) of a text classifier that transformers
  loads; `prepare` or the first text loads it. label: the name of the class in
  the model's config. max_length: in tokens; longer texts are truncated. Softmax
  over the classes, or a sigmoid if there is only one.

  ValueError if the packages are missing, and on loading for a model that is no
  classifier, for an unknown label, and for a `max_length` beyond the model's.
  """
  registry.check_integer('scorer.batch_size', batch_size, 1)
  registry.check_integer('scorer.max_length', max_length, 1)
  for package in ('torch', 'transformers'):
    if importlib.util.find_spec(package) is None:
      raise ValueError(
        f"The scorer 'classifier' needs the package {package}: pip install "
        'torch transformers'
      )

  @functools.cache
  def load():
    import transformers

    folder = str(assets.resolve(model))
    try:
      pipeline = transformers.pipeline('text-classification', model=folder)
    except (OSError, ValueError, KeyError) as error:
      raise ValueError(f'scorer.model {model!r}: {error}') from error
    labels = pipeline.model.config.id2label.values()
    registry.lookup(dict.fromkeys(labels), label, f'label of {model!r}')
    options = dict(
      top_k=None, truncation=True, max_length=max_length, batch_size=batch_size
    )
    try:  # A text of max_length, and a short one, which needs padding.
      pipeline(['a ' * max_length, 'a'], **options)
    except (IndexError, RuntimeError, ValueError) as error:
      raise ValueError(
        f'scorer.model {model!r} does not take {batch_size} texts '
        f'(scorer.batch_size) of up to {max_length} tokens '
        f'(scorer.max_length): {error}'
      ) from error
    return functools.partial(pipeline, **options)

  def batch(texts: Sequence[str]) -> list[float]:
    found = load()(list(texts))
    return [
      next(x['score'] for x in classes if x['label'] == label)
      for classes in found
    ]

  return Scorer('classifier', lambda text: batch([text])[0], 0.5, batch, load)


SCORERS: dict[str, Callable[..., Scorer]] = {
  'vader': vader,
  'classifier': classifier,
}


def make(spec: str | Mapping[str, Any]) -> Scorer:
  """A scorer from its name, or from dict(name=..., **options)."""
  section = {'name': spec} if isinstance(spec, str) else spec
  return registry.build(SCORERS, section, 'scorer')()


def statistics(scorer: Scorer, scores: Sequence[float]) -> dict[str, float]:
  """Mean score and share of positive texts, with 95 % intervals.

  Keys: the scorer's name for the mean, with '_positive' for the share; both
  also with '_low' and '_high': the normal interval, and Wilson's for the share.
  """
  x = np.asarray(scores, np.float64)
  positive = likelihood.share(x >= scorer.positive)
  return {
    **likelihood.metrics_of(scorer.name, likelihood.mean(x)),
    **likelihood.metrics_of(f'{scorer.name}_positive', positive),
  }
