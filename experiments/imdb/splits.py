"""Reviews for the sentiment study, in parts that share no film.

  python -m experiments.imdb.splits --reviews FOLDER --out runs/imdb/data

FOLDER is laid out like hf://datasets/stanfordnlp/imdb. Where its files have a
column `movie`, all reviews of a film are in one part; without it, as on the
hub, only equal texts are kept together, and the output says so. Without
--reviews the parts are made of the movie sentences that the quickstart
downloads.

Written are folders of the same layout, which the sources imdb_reviews and
imdb_prompts read:

  sft, pairs, tune, evaluate   of the train file: whole reviews
  labels_1, labels_2           of the test file: beginnings of 4 to 64 words,
                               with labels; a tenth of the films is their split
                               'test'

A text is in one part only, once; line breaks of HTML become spaces. Beside them
news.jsonl has sentences of newspaper editorials, from the archive of the movie
sentences, which the ablations need.
"""

import argparse
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow
import pyarrow.parquet

from dpo_jax import assets
from dpo_jax.data.sources import movie_reviews
from dpo_jax.evals import samples
from experiments.imdb import places

# Shares of the train file's films, and of the test file's.
TRAIN = {'sft': 0.6, 'pairs': 0.25, 'tune': 0.05, 'evaluate': 0.1}
TEST = {
  ('labels_1', 'train'): 0.45,
  ('labels_1', 'test'): 0.05,
  ('labels_2', 'train'): 0.45,
  ('labels_2', 'test'): 0.05,
}
LEAST_WORDS, MOST_WORDS = 4, 64


class Review(NamedTuple):
  """label: 1 praise, 0 blame. film: reviews of one have the same."""

  text: str
  label: int
  film: str


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--reviews', help='URI of a folder')
  parser.add_argument('--out', type=pathlib.Path, required=True)
  parser.add_argument('--seed', type=int, default=0)
  args = parser.parse_args()
  rng = np.random.default_rng(args.seed)
  train, test = read(args.reviews) if args.reviews else _movie_sentences()
  parts = {
    (name, 'train'): found for name, found in split(train, TRAIN, rng).items()
  }
  for key, found in split(test, TEST, rng).items():
    parts[key] = [_beginning(review, rng) for review in found]
  for (name, part), reviews in parts.items():
    path = args.out / name / 'plain_text' / f'{part}-00000-of-00001.parquet'
    write(path, reviews)
    positive = np.mean([r.label for r in reviews])
    print(
      f'{name}, {part}: {len(reviews)} reviews of '
      f'{len({r.film for r in reviews})} films, {positive:.1%} positive'
    )
  write_news(args.out / places.NEWS)


def write_news(path: pathlib.Path) -> None:
  """Rows of the field `text`, for kind='sft'."""
  found = movie_reviews.read_split(
    assets.resolve(assets.NYT_EDITORIALS), 'train', 0.1
  )
  samples.write_jsonl(path, [{'text': s.text} for s in found])


def read(uri: str) -> tuple[list[Review], list[Review]]:
  """The reviews of both files.

  Those of the second whose text or film the first has are left out.
  """
  train, test = (_read(assets.resolve(uri), name) for name in ('train', 'test'))
  texts, films = {r.text for r in train}, {r.film for r in train}
  return train, [r for r in test if r.text not in texts and r.film not in films]


def _read(folder: pathlib.Path, name: str) -> list[Review]:
  """The reviews of a file, each text once."""
  paths = sorted(folder.glob(f'plain_text/{name}-*.parquet'))
  if not paths:
    raise ValueError(
      f'{str(folder)!r} has no plain_text/{name}-*.parquet. Give a download of '
      'hf://datasets/stanfordnlp/imdb as --reviews.'
    )
  found = {}
  for path in paths:
    table = pyarrow.parquet.read_table(path)
    if 'movie' not in table.column_names:
      print(f'{path.name} has no column `movie`: films may be in two parts.')
    for row in table.to_pylist():
      text = ' '.join(re.sub(r'<br\s*/?>', ' ', row['text']).split())
      film = row.get('movie') or text
      found.setdefault(text, Review(text, row['label'], film))
  return list(found.values())


def _movie_sentences() -> tuple[list[Review], list[Review]]:
  """Rated sentences in the place of reviews, each a film of its own."""
  print('No --reviews: the parts are made of sentences of movie reviews.')
  path = assets.resolve(assets.MOVIE_REVIEWS)
  return tuple(
    [
      Review(s.text, int(s.rating > 0), s.text)
      for s in movie_reviews.read_split(path, name, 0.5)
    ]
    for name in ('train', 'test')
  )


def split(
  reviews: Sequence[Review], shares: Mapping[Any, float], rng
) -> dict[Any, list[Review]]:
  """The reviews by the part of their film; shares: of the films, in all 1."""
  films = sorted({r.film for r in reviews})
  order = rng.permutation(len(films))
  ends = np.round(np.cumsum(list(shares.values())) * len(films)).astype(int)
  place = dict(zip(films, np.argsort(order)))
  keys = list(shares)
  found = {key: [] for key in keys}
  for review in reviews:
    part = np.searchsorted(ends, place[review.film], side='right')
    found[keys[part]].append(review)
  return {
    key: [those[i] for i in rng.permutation(len(those))]
    for key, those in found.items()
  }


def _beginning(review: Review, rng) -> Review:
  """A uniform number of its first words."""
  count = rng.integers(LEAST_WORDS, MOST_WORDS + 1)
  return review._replace(text=' '.join(review.text.split()[:count]))


def write(path: pathlib.Path, reviews: Sequence[Review]) -> None:
  """A Parquet file with the columns text and label."""
  columns = {
    name: [getattr(r, name) for r in reviews] for name in ('text', 'label')
  }
  path.parent.mkdir(parents=True, exist_ok=True)
  with assets.atomic_path(path) as temp:
    pyarrow.parquet.write_table(pyarrow.table(columns), temp)


if __name__ == '__main__':
  main()
