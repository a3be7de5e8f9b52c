"""Losses: arrays in, unreduced losses out."""

from dpo_jax.losses import coupled, likelihood, preference, ranking, unpaired
from dpo_jax.losses.divergences import DIVERGENCES
from dpo_jax.losses.traits import (
  PREFERENCE_LOSSES,
  RANKING_LOSSES,
  RANKING_TRAITS,
  TRAITS,
  UNPAIRED_LOSSES,
  UNPAIRED_TRAITS,
  Traits,
)

# Importing the modules fills the tables.
__all__ = [
  'DIVERGENCES',
  'PREFERENCE_LOSSES',
  'RANKING_LOSSES',
  'RANKING_TRAITS',
  'TRAITS',
  'UNPAIRED_LOSSES',
  'UNPAIRED_TRAITS',
  'Traits',
  'coupled',
  'likelihood',
  'preference',
  'ranking',
  'unpaired',
]
