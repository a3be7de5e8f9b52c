"""Samples of a finished run: temperatures, seeds, and another domain's prompts.

  python -m experiments.imdb.probe --scale tiny --block 0 --run dpo_0.1

At each temperature from 0 to 1 one sample of each prompt of the evaluation, at
temperature 1 with four seeds; and at temperature 1 of beginnings of reviews of
products (the file of the movie sentences' archive), which no policy was trained
on. Writes results/SCALE/BLOCK/probes/RUN.json: of each set of samples the
reward r of each prompt, and means of the other scores. A probe of 'sft' is of
the reference.
"""

import argparse
import pathlib
from typing import Any

from dpo_jax import assets, tokenizers
from dpo_jax.data.sources import movie_reviews
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
  found = {'samples': probe(place, args.run)}
  path = path_of(place, args.run)
  results.write_json(path, results.origin('probe', place) | found)


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
