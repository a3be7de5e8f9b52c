"""Reviews of IMDb for a sentiment reward, and a bag of words beside it.

  python -m experiments.rewards.imdb --reviews FOLDER \\
    --out runs/rewards/imdb_data

FOLDER is laid out like hf://datasets/stanfordnlp/imdb. Written are train.jsonl,
5,000 reviews of the train split, each cut to a number of tokens that is uniform
from 16 to 256; held_256.jsonl and held_40.jsonl, 2,000 reviews of the test
split whose texts the train split does not have, cut to as many tokens; and
bag_of_words.json, what a logistic regression on words and pairs of words that
is fitted to train.jsonl gets right of both.
"""

import argparse
import itertools
import json
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow.parquet
import scipy.optimize
import scipy.sparse

from dpo_jax import assets, tokenizers
from dpo_jax.evals import likelihood

NUM_TRAIN, NUM_HELD_OUT = 5_000, 2_000
LEAST, MOST = 16, 256
LENGTHS = (256, 40)  # Tokens of held-out reviews.
# L2 penalties, of which a tenth of the training reviews chooses.
PENALTIES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


class Review(NamedTuple):
  """label: 1 positive, 0 negative."""

  text: str
  label: int


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--reviews', required=True, help='URI of a folder')
  parser.add_argument('--out', type=pathlib.Path, required=True)
  parser.add_argument('--seed', type=int, default=0)
  args = parser.parse_args()
  folder = assets.resolve(args.reviews)
  tokenizer = tokenizers.load(assets.SMOLLM2)
  rng = np.random.default_rng(args.seed)
  known = _read(folder, 'train')
  seen = {review.text for review in known}
  others = [r for r in _read(folder, 'test') if r.text not in seen]
  train, held_out = (
    _drawn(known, NUM_TRAIN, rng),
    _drawn(others, NUM_HELD_OUT, rng),
  )
  lengths = rng.integers(LEAST, MOST + 1, size=NUM_TRAIN)
  parts = {'train': _cut(train, lengths, tokenizer)}
  for length in LENGTHS:
    parts[f'held_{length}'] = _cut(held_out, [length] * NUM_HELD_OUT, tokenizer)
  args.out.mkdir(parents=True, exist_ok=True)
  for name, reviews in parts.items():
    rows = (dict(text=r.text, label=bool(r.label)) for r in reviews)
    lines = ''.join(json.dumps(row) + '\n' for row in rows)
    (args.out / f'{name}.jsonl').write_text(lines, 'utf-8')
  found = bag_of_words(parts.pop('train'), parts, rng)
  (args.out / 'bag_of_words.json').write_text(
    json.dumps(found, indent=1) + '\n'
  )
  print(json.dumps(found, indent=1))


def _read(folder: pathlib.Path, split: str) -> list[Review]:
  """The reviews of a split, each text once."""
  found = {}
  for path in sorted(folder.glob(f'plain_text/{split}-*.parquet')):
    table = pyarrow.parquet.read_table(path, columns=['text', 'label'])
    found |= {row['text']: row['label'] for row in table.to_pylist()}
  return [Review(text, label) for text, label in found.items()]


def _drawn(reviews: Sequence[Review], count: int, rng) -> list[Review]:
  """`count` reviews in random order, half of them positive."""
  by_label = [[r for r in reviews if r.label == label] for label in (0, 1)]
  chosen = [
    each[i]
    for each in by_label
    for i in rng.permutation(len(each))[: count // 2]
  ]
  return [chosen[i] for i in rng.permutation(count)]


def _cut(reviews, lengths, tokenizer) -> list[Review]:
  """Reviews of at most so many tokens; half a character at the end is lost."""
  ids = tokenizer.encode_batch([r.text for r in reviews])
  texts = (tokenizer.decode(x[:n]) for x, n in zip(ids, lengths, strict=True))
  return [
    Review(text.rstrip('\N{REPLACEMENT CHARACTER}'), review.label)
    for text, review in zip(texts, reviews)
  ]


# The baseline.


def bag_of_words(train, held_out, rng) -> dict:
  """The shares that are right, and the penalty."""
  places = {}
  for review in train:
    for word in _words(review.text):
      places.setdefault(word, len(places))
  own = rng.permutation(len(train))
  rest, tenth = own[len(own) // 10 :], own[: len(own) // 10]
  features, labels = _features(train, places), _labels(train)

  def chosen_by(penalty):
    weights = _fit(features[rest], labels[rest], penalty)
    return _right(weights, features[tenth], labels[tenth]).mean()

  penalty = max(PENALTIES, key=chosen_by)
  weights = _fit(features, labels, penalty)
  out = {'penalty': penalty, 'features': len(places)}
  for name, reviews in held_out.items():
    right = _right(weights, _features(reviews, places), _labels(reviews))
    out[name] = likelihood.share(right)
  return out


def _words(text: str) -> Iterator[str]:
  """Lower-case words, and each two in sequence."""
  words = re.findall(r"[a-z']+|[!?]", text.lower())
  yield from words
  yield from map(' '.join, itertools.pairwise(words))


def _features(reviews, places) -> scipy.sparse.csr_matrix:
  """1 where a review has the word, over the root of how many it has."""
  rows = [
    sorted({places[w] for w in _words(r.text) if w in places}) for r in reviews
  ]
  ends = np.cumsum([0, *map(len, rows)])
  values = np.concatenate(
    [np.full(len(x), max(1, len(x)) ** -0.5) for x in rows]
  )
  columns = np.concatenate([np.array(x, int) for x in rows])
  shape = len(rows), len(places)
  return scipy.sparse.csr_matrix((values, columns, ends), shape)


def _labels(reviews) -> np.ndarray:
  return np.array([r.label for r in reviews], float)


def _fit(features, labels, penalty: float) -> np.ndarray:
  """Weights of a logistic regression, the intercept last."""
  signs = 2 * labels - 1

  def loss(weights):
    margins = signs * (features @ weights[:-1] + weights[-1])
    slope = -signs / (1 + np.exp(margins))
    value = np.logaddexp(0, -margins).sum() + penalty / 2 * weights @ weights
    gradient = np.append(features.T @ slope, slope.sum())
    return value, gradient + penalty * weights

  start = np.zeros(features.shape[1] + 1)
  return scipy.optimize.minimize(loss, start, jac=True, method='L-BFGS-B').x


def _right(weights, features, labels) -> np.ndarray:
  return (features @ weights[:-1] + weights[-1] > 0) == (labels > 0)


if __name__ == '__main__':
  main()
