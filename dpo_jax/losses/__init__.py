"""Losses: arrays in, unreduced losses out."""

from dpo_jax.losses.preference import PREFERENCE_LOSSES

__all__ = ['PREFERENCE_LOSSES']
