"""The reward r of a block: its first classifier, scaled.

  python -m experiments.imdb.reward --block 0

Reads the scores of runs/imdb/tiny/BLOCK/pairs, logits of the first classifier.
r is the logit times a factor, with which Bradley-Terry labels of these pairs
agree with the order of the scores 80 % of the time on average; r's mean over
these samples is 0. Written are, in runs/imdb/tiny/BLOCK/reward,

  params/      the classifier with its head scaled and normalised
  factor.json  the factor, for labels.py
"""

import argparse
import pathlib

import jax
import numpy as np
import scipy.optimize
import scipy.special

from dpo_jax import assets, run_dir, tokenizers, weights
from dpo_jax.evals import samples
from dpo_jax.rewards import reward_model
from experiments import files
from experiments.imdb import places

AGREEMENT = 0.8


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--block', type=int, required=True)
  place = places.Place('tiny', parser.parse_args().block)
  rows = samples.read(pathlib.Path(place.folder('pairs/pairs.jsonl')))
  scores_BxK = np.array([row['scores'] for row in rows])
  factor = find_factor(scores_BxK)
  uri = places.classifier(place)['model']
  config, params = weights.load(uri)
  params['score'] = jax.tree.map(lambda w: factor * w, params['score'])
  normalised = reward_model.Normalisation(
    mean=factor * float(scores_BxK.mean()),
    std=factor * float(scores_BxK.std()),
    samples=scores_BxK.size,
    reference=place.folder('sft/params'),
    max_new_tokens=places.NEW_TOKENS,
  )
  folder = pathlib.Path(place.folder('reward'))
  files.write_json(folder / 'factor.json', {'factor': factor})
  run_dir.save_params(
    folder,
    config,
    params,
    tokenizers.load(uri),
    {reward_model.FILE: normalised.to_json()},
  )
  print(f'r is {factor:.3f} times the logit')


def read_factor(place: places.Place) -> float:
  """The factor between r and the first classifier's logit."""
  path = pathlib.Path(place.of_reward('reward/factor.json'))
  return assets.read_json(path)['factor']


def find_factor(scores_BxK: np.ndarray) -> float:
  """The factor with which labels agree with the order of scores so often.

  Equal scores are no pairs.
  """
  i, j = np.triu_indices(scores_BxK.shape[1], 1)
  gaps = np.abs(scores_BxK[:, i] - scores_BxK[:, j])
  gaps = gaps[gaps > 0]

  def too_often(factor):
    return scipy.special.expit(factor * gaps).mean() - AGREEMENT

  return scipy.optimize.brentq(too_often, 1e-3, 1e3)


if __name__ == '__main__':
  main()
