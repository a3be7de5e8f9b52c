"""Loads and saves parameters: Hugging Face folders and GGUF files."""

from dpo_jax.weights.loading import load, read_config
from dpo_jax.weights.safetensors_file import DTYPES
from dpo_jax.weights.saving import check_savable, save

__all__ = ['DTYPES', 'check_savable', 'load', 'read_config', 'save']
