"""Continuations of prompts, drawn from a model."""

from dpo_jax.sampling.filters import Rule
from dpo_jax.sampling.sampler import Samples, check, sample, stream

__all__ = ['Rule', 'Samples', 'check', 'sample', 'stream']
