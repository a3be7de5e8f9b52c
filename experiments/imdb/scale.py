"""The reward r: the first classifier, scaled; and labels that are drawn.

  python -m experiments.imdb.scale

Reads the scores of runs/imdb/tiny/pairs, logits of the first classifier, and
writes

  runs/imdb/reward/params             the classifier with its head scaled, so
      that Bradley-Terry labels of the pairs agree with the order of the scores
      80 % of the time on average; its mean over the samples is subtracted
  runs/imdb/tiny/pairs/sampled.jsonl  the same completions with such labels, one
      draw for each pair; in pairs.jsonl the higher score is always preferred
"""

import argparse
import itertools
import pathlib

import jax
import numpy as np
import scipy.optimize
import scipy.special

from dpo_jax import run_dir, tokenizers, weights
from dpo_jax.evals import samples
from dpo_jax.rewards import reward_model
from experiments.imdb import pages

AGREEMENT = 0.8


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--seed', type=int, default=0)
  args = parser.parse_args()
  root = pathlib.Path(pages.RUNS)
  rows = samples.read(root / 'tiny' / 'pairs' / 'pairs.jsonl')
  scores_BxK = np.array([row['scores'] for row in rows])
  factor = find_factor(scores_BxK)
  config, params = weights.load(pages.CLASSIFIER['model'])
  params['score'] = jax.tree.map(lambda w: factor * w, params['score'])
  tokenizer = tokenizers.load(pages.CLASSIFIER['model'])
  normalised = reward_model.Normalisation(
    mean=factor * float(scores_BxK.mean()),
    std=factor * float(scores_BxK.std()),
    samples=scores_BxK.size,
    reference=f'{pages.RUNS}/tiny/sft/params',
    max_new_tokens=pages.NEW_TOKENS,
  )
  run_dir.save_params(
    root / 'reward',
    config,
    params,
    tokenizer,
    {reward_model.FILE: normalised.to_json()},
  )
  path = root / 'tiny' / 'pairs' / 'sampled.jsonl'
  rng = np.random.default_rng(args.seed)
  samples.write_jsonl(path, drawn_labels(rows, factor, rng))
  print(f'r is {factor:.3f} times the logit; {path}')


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


def drawn_labels(rows: samples.Rows, factor: float, rng) -> samples.Rows:
  """The rows with a preference for each two completions of unequal text."""
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
