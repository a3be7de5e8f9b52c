"""Rows in the form of TL;DR's data sets, made of rated sentences.

  python -m experiments.tldr.rows --out runs/tldr/data

For the scale 'tiny', where Reddit's posts are not to be had: a post is four
sentences of movie reviews of one mood, its summary the one that people rated
the strongest, and the worse summary a sentence of the other mood. Written are
folders in the layout of hf://datasets/CarperAI/openai_summarize_tldr (sft) and
openai_summarize_comparisons (comparisons). No sentence of a training row is in
a held-out one.
"""

import argparse
import pathlib
from collections.abc import Iterator, Sequence

import pyarrow
import pyarrow.parquet

from dpo_jax import assets
from dpo_jax.data.sources import movie_reviews

HELD_OUT = 0.2
SENTENCES = 4
Sentences = Sequence[movie_reviews.Sentence]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--out', type=pathlib.Path, required=True)
  out = parser.parse_args().out
  file = assets.resolve(assets.MOVIE_REVIEWS)
  train, held = (
    list(rows(movie_reviews.read_split(file, split, HELD_OUT)))
    for split in ('train', 'test')
  )
  for folder, splits, fields in (
    ('sft', {'train': train, 'valid': held, 'test': held}, ('label',)),
    ('comparisons', {'train': train, 'valid1': held}, ('chosen', 'rejected')),
  ):
    for split, found in splits.items():
      path = out / folder / 'data' / f'{split}-00000-of-00001.parquet'
      names = ('prompt', *fields)
      table = pyarrow.table({n: [row[n] for row in found] for n in names})
      with assets.atomic_path(path) as temp:
        pyarrow.parquet.write_table(table, temp)
      print(f'{folder}, {split}: {len(found)} rows')


def rows(sentences: Sentences) -> Iterator[dict[str, str]]:
  """Posts with `label`, `chosen` and `rejected`; a sentence is in one post."""
  praise, blame = (
    [s for s in sentences if (s.rating > 0) == mood] for mood in (True, False)
  )
  last = min(len(praise), len(blame)) - SENTENCES
  for i in range(0, last + 1, SENTENCES):
    posts = praise[i : i + SENTENCES], blame[i : i + SENTENCES]
    yield _row(*posts)
    yield _row(*reversed(posts))


def _row(post: Sentences, other: Sentences) -> dict[str, str]:
  best, worse = (
    max(sentences, key=lambda s: abs(s.rating)).text
    for sentences in (post, other)
  )
  title = ' '.join(post[0].text.split()[:6])
  text = ' '.join(s.text for s in post)
  return {
    'prompt': f'SUBREDDIT: r/movies\nTITLE: {title}\nPOST: {text}\nTL;DR:',
    'label': f' {best}',
    'chosen': f'TL;DR: {best}',
    'rejected': f'TL;DR: {worse}',
  }


if __name__ == '__main__':
  main()
