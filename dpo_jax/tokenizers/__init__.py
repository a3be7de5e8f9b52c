"""Text <-> ids: tokenizer.json files, Hugging Face folders, GGUF files."""

from dpo_jax.tokenizers.loading import load
from dpo_jax.tokenizers.tokenizer import Tokenizer

__all__ = ['Tokenizer', 'load']
