"""Scales and blocks of the sentiment study, and where their runs are.

Scales are 'tiny', a model that learns the reviews from random weights, 'small',
SmolLM2-135M, and 'paper', gpt2-large. A block is the whole study with a seed
of its own: its own reference, reward and pairs. All scales have the reward of
the same block of 'tiny'.
"""

from typing import NamedTuple

from dpo_jax import assets

RUNS = 'runs/imdb'
NEW_TOKENS = 32
BATCH = 64
# Of the folder of data: sentences of another domain.
NEWS = 'news.jsonl'


class Sizes(NamedTuple):
  """What scales differ in.

  pairs, evaluated: prompts, of which the first have four completions each.
  batch: pairs of a step, and prompts of a collection of rollouts.
  """

  start: str
  pairs: int
  evaluated: int
  batch: int
  sft_epochs: float
  sft_batch: int
  sft_peak: float
  dtype: str = 'float32'


SCALES = {
  'tiny': Sizes(f'{RUNS}/tiny/start', 2_048, 256, 64, 1.0, 16, 1.5e-3),
  'small': Sizes(assets.SMOLLM2, 512, 128, 32, 0.1, 32, 2e-5),
  'paper': Sizes(
    'hf://openai-community/gpt2-large',
    6_144,
    512,
    64,
    1.0,
    32,
    2e-5,
    'bfloat16',
  ),
}


class Place(NamedTuple):
  """A block of a scale, and where its runs are."""

  scale: str
  block: int

  def folder(self, run: str) -> str:
    """Of a run or a file in it, such as 'sft/params'."""
    return f'{RUNS}/{self.scale}/{self.block}/{run}'

  def of_reward(self, run: str) -> str:
    """Of what a reward is made of, in the block of the scale 'tiny'."""
    return Place('tiny', self.block).folder(run)

  @property
  def sizes(self) -> Sizes:
    """Of the scale."""
    return SCALES[self.scale]

  @property
  def seed(self) -> int:
    """Of all runs of the block but those of tuning, whose seed is 0."""
    return 100 + self.block


def scorer(uri: str) -> dict:
  """The section of a reward that is a run's model."""
  return dict(name='reward_model', model=uri, batch_size=BATCH)


def reward(place: Place) -> dict:
  """r: the first classifier, scaled (reward.py)."""
  return scorer(place.of_reward('reward/params'))


def classifier(place: Place, number: int = 1) -> dict:
  """The logit of a classifier."""
  return scorer(place.of_reward(f'labels_{number}/params'))
