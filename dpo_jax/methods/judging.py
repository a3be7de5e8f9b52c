"""Which samples are better: by a reward, or by a preference between two."""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from dpo_jax import rewards
from dpo_jax.methods import rollouts as rollouts_lib
from dpo_jax.training import processes


class Judged(NamedTuple):
  """What is known of the quality of samples.

  scores_N: f32, of a reward; None where a preference judges. wins_BxKxK: f32,
  the probability that sample i of a prompt is preferred to sample j; None
  where a reward judges.
  """

  scores_N: np.ndarray | None = None
  wins_BxKxK: np.ndarray | None = None

  def wins(self, num_samples: int) -> np.ndarray:
    """f32[B, K, K]; of scores the higher one wins, and a tie is half a win."""
    if self.wins_BxKxK is not None:
      return self.wins_BxKxK
    scores_BxK = self.scores_N.reshape(-1, num_samples)
    difference = scores_BxK[:, :, None] - scores_BxK[:, None]
    return np.float32(0.5 + 0.5 * np.sign(difference))


def by_reward(
  reward: rewards.Reward, longest_prompt: str, max_new_tokens: int
) -> Callable[..., Judged]:
  """Judges by a reward; process 0 asks it, for all processes.

  Collective; an error of the reward is raised in all of them. ValueError if the
  reward cannot be loaded, or has no room for completions of the longest prompt.
  """
  group = processes.Group()
  group.in_first(lambda: reward([], []).tolist())  # Loads it.
  group.in_first(lambda: reward.check_room(longest_prompt, max_new_tokens))

  def judge(rollouts: rollouts_lib.Rollouts) -> Judged:
    scores = group.in_first(
      lambda: reward(rollouts.prompt_texts, rollouts.texts).tolist()
    )
    return Judged(scores_N=np.array(scores, np.float32))

  return judge


def by_preference(preference: rewards.Preference) -> Callable[..., Judged]:
  """Judges each two samples of a prompt; process 0 asks, for all processes.

  Collective; an error of the preference is raised in all of them.
  """
  group = processes.Group()

  def judge(rollouts: rollouts_lib.Rollouts) -> Judged:
    k = rollouts.num_samples
    pairs = [
      (b * k + i, b * k + j)
      for b in range(len(rollouts.prompts))
      for i, j in itertools.combinations(range(k), 2)
    ]
    prompts, first, second = (
      [texts[pair[side]] for pair in pairs]
      for texts, side in (
        (rollouts.prompt_texts, 0),
        (rollouts.texts, 0),
        (rollouts.texts, 1),
      )
    )
    won = group.in_first(lambda: preference(prompts, first, second).tolist())
    wins = np.full((len(rollouts.prompts), k, k), 0.5, np.float32)
    for (n, m), p in zip(pairs, np.array(won, np.float32)):
      wins[n // k, n % k, m % k] = p
      wins[n // k, m % k, n % k] = 1 - p
    return Judged(wins_BxKxK=wins)

  return judge
