"""Labels of a block's pairs that a Bradley-Terry judge of r draws.

  python -m experiments.imdb.labels --scale tiny --block 0

Writes runs/imdb/SCALE/BLOCK/pairs/drawn.jsonl: the completions of pairs.jsonl
there, and for each two of them a preference, once: the first is preferred with
probability sigmoid(r1 - r2). In pairs.jsonl the higher r is always preferred.
"""

import argparse
import itertools
import pathlib

import numpy as np
import scipy.special

from dpo_jax.evals import samples
from experiments.imdb import pages, reward


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--scale', choices=pages.SCALES, required=True)
  parser.add_argument('--block', type=int, required=True)
  args = parser.parse_args()
  place = pages.Place(args.scale, args.block)
  pairs = pathlib.Path(place.folder('pairs'))
  drawn = draw(
    samples.read(pairs / 'pairs.jsonl'),
    reward.read_factor(place),
    np.random.default_rng(args.block),
  )
  samples.write_jsonl(pairs / 'drawn.jsonl', drawn)


def draw(rows: samples.Rows, factor: float, rng) -> samples.Rows:
  """The rows with a preference for each two completions of unequal text.

  factor: between r and the rows' scores.
  """
  out = []
  for row in rows:
    texts, scores = row['completions'], row['scores']
    preferences = []
    for i, j in itertools.combinations(range(len(texts)), 2):
      if texts[i] != texts[j]:
        wins = scipy.special.expit(factor * (scores[i] - scores[j]))
        preferences.append([i, j] if rng.random() < wins else [j, i])
    out.append(
      {
        'prompt': row['prompt'],
        'completions': texts,
        'preferences': preferences,
      }
    )
  return out


if __name__ == '__main__':
  main()
