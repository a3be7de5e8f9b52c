"""Scorers: text -> a number, to judge samples with what training never saw."""

import functools
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dpo_jax import assets, registry
from dpo_jax.training import metrics

# What says how positive a review is in the DPO paper (App. C.1).
SIEBERT = 'hf://siebert/sentiment-roberta-large-english'


class Scorer(NamedTuple):
  """score(text) -> [-1, 1]; from `positive` on a text counts as positive.

  batch: scores of many texts at once; None for one by one. prepare: loads what
  scoring needs, with a ValueError for what is wrong with it.
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


def classifier(
  *,
  model: str = SIEBERT,
  label: str = 'POSITIVE',
  batch_size: int = 16,
  max_length: int = 512,
) -> Scorer:
  """The probability that a text classifier gives to one of its classes.

  model: a URI of assets.py, of any text classifier that transformers loads;
  `prepare` or the first text loads it. label: the class, by the name that the
  model's config has for it. max_length: tokens; longer texts are cut. Softmax
  over the classes; a sigmoid if there is only one.

  ValueError without the packages, and, once it is loaded, for what is no
  classifier, for another label, and for texts that are too long for it.
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
    try:  # The longest text, beside a short one where it takes several.
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
  """A scorer by name, or as dict(name=..., its options)."""
  section = {'name': spec} if isinstance(spec, str) else spec
  return registry.build(SCORERS, section, 'scorer')()


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
