"""Losses: arrays in, unreduced losses out."""

# Importing the modules with objectives fills the tables.
from dpo_jax.losses import (
  coupled,
  likelihood,
  policy_gradient,
  preference,
  ranking,
  reward,
  unpaired,
)
from dpo_jax.losses.divergences import DIVERGENCES
from dpo_jax.losses.loss_properties import (
  LOSSES,
  PREFERENCE_LOSSES,
  RANKING_LOSSES,
  UNPAIRED_LOSSES,
  Loss,
  LossProperties,
)

REWARD_LOSSES = reward.LOSSES

__all__ = [
  'DIVERGENCES',
  'LOSSES',
  'PREFERENCE_LOSSES',
  'RANKING_LOSSES',
  'REWARD_LOSSES',
  'UNPAIRED_LOSSES',
  'Loss',
  'LossProperties',
  'coupled',
  'likelihood',
  'policy_gradient',
  'preference',
  'ranking',
  'reward',
  'unpaired',
]
