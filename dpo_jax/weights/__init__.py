"""Where parameters come from and go to: Hugging Face folders, GGUF files."""

from dpo_jax.weights.loading import load
from dpo_jax.weights.saving import check_savable, save

__all__ = ['check_savable', 'load', 'save']
