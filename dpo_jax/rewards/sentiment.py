"""Rewards that score a text: VADER, and text classifiers of transformers."""

import functools
import importlib.util
import operator
from collections.abc import Callable, Sequence

import numpy as np

from dpo_jax import assets, registry

# The sentiment classifier of the DPO paper (arXiv:2305.18290, App. C.1).
SIEBERT = 'hf://siebert/sentiment-roberta-large-english'
# The texts that are scored, of prompts and their completions.
SEES: dict[str, Callable[[Sequence[str], Sequence[str]], list[str]]] = {
  'completion': lambda prompts, completions: list(completions),
  'both': lambda prompts, completions: list(
    map(operator.add, prompts, completions)
  ),
}


def vader(*, sees: str = 'completion'):
  """The compound sentiment of VADER 3.3, in [-1, 1].

  C.J. Hutto and E. Gilbert, ICWSM 2014: a lexicon and rules, English only. A
  text without a word of the lexicon scores 0. sees: a key of `SEES`.
  ValueError if the package is not installed.
  """
  seen = registry.lookup(SEES, sees, 'reward.sees')
  try:
    from vaderSentiment import vaderSentiment
  except ImportError as error:
    raise ValueError(
      "The reward 'vader' needs the package vaderSentiment: "
      'pip install vaderSentiment'
    ) from error
  analyzer = vaderSentiment.SentimentIntensityAnalyzer()

  def fn(prompts: Sequence[str], completions: Sequence[str]) -> np.ndarray:
    texts = seen(prompts, completions)
    scores = [analyzer.polarity_scores(text)['compound'] for text in texts]
    return np.array(scores, np.float32)

  return fn


def classifier(
  *,
  sees: str = 'completion',
  model: str = SIEBERT,
  label: str = 'POSITIVE',
  batch_size: int = 16,
  max_length: int = 512,
):
  """The probability that a text classifier gives to one of its classes.

  sees: a key of `SEES`. model: the URI (see `assets.resolve`) of a text
  classifier that transformers loads; the first call loads it. label: the name
  of the class in the model's config. max_length: in tokens; longer texts are
  truncated. Softmax over the classes, or a sigmoid if there is only one.

  ValueError if the packages are missing, and on loading for a model that is no
  classifier, for an unknown label, and for a `max_length` beyond the model's.
  """
  seen = registry.lookup(SEES, sees, 'reward.sees')
  registry.check_integer('reward.batch_size', batch_size, 1)
  registry.check_integer('reward.max_length', max_length, 1)
  for package in ('torch', 'transformers'):
    if importlib.util.find_spec(package) is None:
      raise ValueError(
        f"The reward 'classifier' needs the package {package}: pip install "
        'torch transformers'
      )

  @functools.cache
  def load():
    import transformers

    folder = str(assets.resolve(model))
    try:
      pipeline = transformers.pipeline('text-classification', model=folder)
    except (OSError, ValueError, KeyError) as error:
      raise ValueError(f'reward.model {model!r}: {error}') from error
    labels = pipeline.model.config.id2label.values()
    registry.lookup(dict.fromkeys(labels), label, f'label of {model!r}')
    options = dict(
      top_k=None, truncation=True, max_length=max_length, batch_size=batch_size
    )
    try:  # A text of max_length, and a short one, which needs padding.
      pipeline(['a ' * max_length, 'a'], **options)
    except (IndexError, RuntimeError, ValueError) as error:
      raise ValueError(
        f'reward.model {model!r} does not take {batch_size} texts '
        f'(reward.batch_size) of up to {max_length} tokens '
        f'(reward.max_length): {error}'
      ) from error
    return functools.partial(pipeline, **options)

  def fn(prompts: Sequence[str], completions: Sequence[str]) -> np.ndarray:
    classify = load()
    texts = seen(prompts, completions)
    scores = [
      next(x['score'] for x in classes if x['label'] == label)
      for classes in (classify(texts) if texts else [])
    ]
    return np.array(scores, np.float32)

  return fn
