"""Labels of a block's pairs: drawn, flipped, or of fewer prompts.

  python -m experiments.imdb.labels --scale tiny --block 0
  python -m experiments.imdb.labels --scale tiny --block 0 --flipped 0.2
  python -m experiments.imdb.labels --scale tiny --block 0 --prompts 256

Reads the completions of runs/imdb/SCALE/BLOCK/pairs/pairs.jsonl, or of --of,
and writes beside it a file with a preference for each two of unequal text:

  drawn.jsonl      the first is preferred with probability sigmoid(r1 - r2)
  flipped_E.jsonl  the higher r is preferred, but with probability E the lower
  drawn_N.jsonl    as in drawn.jsonl, of the first N prompts
"""

import argparse
import itertools
import pathlib
from collections.abc import Callable

import numpy as np
import scipy.special

from dpo_jax.evals import samples
from experiments.imdb import places, reward


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--scale', choices=places.SCALES, required=True)
  parser.add_argument('--block', type=int, required=True)
  parser.add_argument('--of', default='pairs', help='the run that sampled')
  parser.add_argument('--flipped', type=float)
  parser.add_argument('--prompts', type=int)
  args = parser.parse_args()
  place = places.Place(args.scale, args.block)
  folder = pathlib.Path(place.folder(args.of))
  rows = samples.read(folder / 'pairs.jsonl')[: args.prompts]
  rng = np.random.default_rng(place.seed)
  if args.flipped is None:
    name = 'drawn' if args.prompts is None else f'drawn_{args.prompts}'
    wins = bradley_terry(reward.read_factor(place))
  else:
    name, wins = f'flipped_{args.flipped:g}', flipped(args.flipped)
  samples.write_jsonl(folder / f'{name}.jsonl', draw(rows, wins, rng))


# difference of two scores -> probability that the first is preferred
Wins = Callable[[float], float]


def bradley_terry(factor: float) -> Wins:
  """Eq. 1 of arXiv:2305.18290; factor: between r and the rows' scores."""
  return lambda gap: float(scipy.special.expit(factor * gap))


def flipped(rate: float) -> Wins:
  """The higher score wins, but for a share `rate` of pairs."""
  return lambda gap: 0.5 if gap == 0 else rate + (1 - 2 * rate) * (gap > 0)


def draw(rows: samples.Rows, wins: Wins, rng) -> samples.Rows:
  """The rows with a preference for each two completions of unequal text."""
  out = []
  for row in rows:
    texts, scores = row['completions'], row['scores']
    preferences = []
    for i, j in itertools.combinations(range(len(texts)), 2):
      if texts[i] != texts[j]:
        first = rng.random() < wins(scores[i] - scores[j])
        preferences.append([i, j] if first else [j, i])
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
