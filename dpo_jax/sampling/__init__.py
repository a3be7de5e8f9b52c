"""Samples continuations of prompts from a model."""

from dpo_jax.sampling.filters import SamplingRule
from dpo_jax.sampling.sampler import Samples, check, sample, stream

__all__ = ['Samples', 'SamplingRule', 'check', 'sample', 'stream']
