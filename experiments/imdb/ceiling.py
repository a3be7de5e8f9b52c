"""What no policy exceeds, and best-of-N: both from samples of the reference.

  python -m experiments.imdb.ceiling --scale tiny --block 0

The policy that is best at a KL weighs each of the reference's completions by
exp(r / beta) (Eq. 4 of arXiv:2305.18290). From 128 samples of each of 64
prompts follow, for every beta, its reward, its KL, and the effective sample
size of the weights; where that is below 10 on average nothing is drawn. The
same samples give the expected reward of the best of N, at the bound of its KL.
The prompts are the first of those that evaluations sample. Writes
results/SCALE/BLOCK/ceiling.json.
"""

import argparse

import numpy as np
import scipy.special

from dpo_jax.evals import best_of_n
from experiments import files
from experiments.imdb import places, results, sampled

PROMPTS, SAMPLES = 64, 128
LEAST_SAMPLE_SIZE = 10.0
BETAS = tuple(np.geomspace(0.05, 20, 40).round(4).tolist())


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--scale', choices=places.SCALES, default='tiny')
  parser.add_argument('--block', type=int, default=0)
  args = parser.parse_args()
  place = places.Place(args.scale, args.block)
  path = results.path_of(place, 'ceiling')
  origin = results.origin('ceiling', place, path)
  scores_BxM = _scores(place)
  found = {
    'ceiling': ceiling(scores_BxM),
    'best_of_n': best_of_n.make_curve(scores_BxM, 'reward').rows,
  }
  files.write_json(path, origin | found, indent=1)


def _scores(place: places.Place) -> np.ndarray:
  """r of samples of the reference at prompts of the evaluation, f32[B, M]."""
  policy = sampled.load(place, 'sft')
  rows = sampled.draw(
    policy,
    sampled.prompts(place, policy.tokenizer, PROMPTS),
    seed=place.seed,
    num_samples=SAMPLES,
  )
  reward = sampled.judges(place).reward
  return sampled.scores(reward, rows).reshape(PROMPTS, SAMPLES)


def ceiling(scores_BxM: np.ndarray) -> list[dict[str, float]]:
  """Reward, KL and effective sample size of the optimum at each beta.

  Means over prompts; KL = E[r] / beta - log Z under the optimum.
  """
  out = []
  for beta in BETAS:
    logits_BxM = scores_BxM.astype(float) / beta
    log_z_B = scipy.special.logsumexp(logits_BxM, axis=1)
    weights_BxM = np.exp(logits_BxM - log_z_B[:, None])
    reward_B = (weights_BxM * scores_BxM).sum(axis=1)
    kl_B = reward_B / beta - (log_z_B - np.log(scores_BxM.shape[1]))
    size_B = 1 / (weights_BxM**2).sum(axis=1)
    out.append(
      {
        'beta': beta,
        'reward': reward_B.mean(),
        'kl': kl_B.mean(),
        'sample_size': size_B.mean(),
      }
    )
  return out


if __name__ == '__main__':
  main()
