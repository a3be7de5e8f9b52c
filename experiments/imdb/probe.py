"""Samples of a finished run: temperatures, seeds, and another domain's prompts.

  python -m experiments.imdb.probe --scale tiny --block 0 --run dpo_0.1

At each temperature from 0 to 1 one sample of each prompt of the evaluation, at
temperature 1 with four seeds; and at temperature 1 of beginnings of reviews of
products (the file of the movie sentences' archive), which no policy was trained
on. Writes results/SCALE/BLOCK/probes/RUN.json: of each set of samples the
reward r of each prompt, and means of the other scores; and how often r's order
of two samples of a prompt, from the run's last evaluation, is the order of the
policy's implicit reward and of the learned reward model. A probe of 'sft' is of
the reference, whose implicit reward is 0.
"""

import argparse
import itertools
import pathlib
from typing import Any

import numpy as np

from dpo_jax import assets, rewards, tokenizers
from dpo_jax.data.sources import movie_reviews
from dpo_jax.evals import samples
from experiments import files
from experiments.imdb import places, results, sampled

TEMPERATURES = (0.0, 0.25, 0.5, 0.75, 1.0)
SEEDS = 4
PRODUCTS = 256
# Tokens of a review that are a prompt; those of a film have 2 to 8.
PREFIX = 5


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--scale', choices=places.SCALES, default='tiny')
  parser.add_argument('--block', type=int, required=True)
  parser.add_argument('--run', required=True)
  args = parser.parse_args()
  place = places.Place(args.scale, args.block)
  path = path_of(place, args.run)
  origin = results.origin('probe', place, path)
  found = {'samples': probe(place, args.run)}
  if args.run != 'sft':
    found['own_pairs'] = own_pairs(place, args.run)
  files.write_json(path, origin | found)


def path_of(place: places.Place, run: str) -> pathlib.Path:
  """Where a probe is kept."""
  return results.path_of(place, f'probes/{run}')


def probe(place: places.Place, run: str) -> list[dict[str, Any]]:
  """What is kept of each set of samples."""
  policy, judged_by = sampled.load(place, run), sampled.judges(place)
  films = sampled.prompts(place, policy.tokenizer, place.sizes.evaluated)
  sets = [('films', films, t, 0) for t in TEMPERATURES]
  sets += [('films', films, 1.0, seed) for seed in range(1, SEEDS)]
  sets.append(('products', product_prompts(policy.tokenizer), 1.0, 0))
  out = []
  for name, prompts, temperature, seed in sets:
    rows = sampled.draw(policy, prompts, seed=seed, temperature=temperature)
    reward_U = sampled.scores(judged_by.reward, rows)
    out.append(
      {
        'prompts': name,
        'temperature': temperature,
        'seed': seed,
        'reward': reward_U.astype(float).round(sampled.DIGITS).tolist(),
        **sampled.means(judged_by, rows),
      }
    )
  return out


def own_pairs(place: places.Place, run: str) -> dict[str, Any]:
  """See `agreement`; of the samples of the run's last evaluation."""
  last = max(pathlib.Path(place.folder(run), 'samples').glob('*.jsonl'))
  rows = samples.read(last)
  learned = rewards.build(places.scorer(place.folder('reward_model/params')))
  return agreement(
    rows,
    {
      'implicit': np.array([row['log_ratio'] for row in rows]),
      'learned': sampled.scores(learned, rows),
    },
  )


def agreement(
  rows: samples.Rows, others: dict[str, np.ndarray]
) -> dict[str, Any]:
  """How often two samples of a prompt are ordered as r orders them.

  Pairs of equal r do not count. others: name -> a score of each row; a pair of
  equal scores counts half.
  """
  of_prompts = {}
  for i, row in enumerate(rows):
    of_prompts.setdefault(row['prompt'], []).append(i)
  r = np.array([row['reward_model'] for row in rows])
  pairs = [
    pair
    for found in of_prompts.values()
    for pair in itertools.combinations(found, 2)
    if r[pair[0]] != r[pair[1]]
  ]
  i, j = np.array(pairs).T
  shares = {
    name: round(
      float(0.5 + np.mean(np.sign((x[i] - x[j]) * (r[i] - r[j]))) / 2),
      sampled.DIGITS,
    )
    for name, x in others.items()
  }
  return {'pairs': len(pairs), **shares}


def product_prompts(tokenizer: tokenizers.Tokenizer) -> list[list[int]]:
  """The first tokens of sentences on products, each beginning once."""
  path = assets.resolve(assets.AMAZON_REVIEWS)
  texts = [s.text for s in movie_reviews.read_split(path, 'train', 0.1)]
  found = {}
  for ids in tokenizer.encode_batch(texts):
    if len(ids) > PREFIX:
      found[tuple(ids[:PREFIX])] = None
  return [list(ids) for ids in found][:PRODUCTS]


if __name__ == '__main__':
  main()
