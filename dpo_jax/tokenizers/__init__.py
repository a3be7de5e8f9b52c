"""Tokenizers (tokenizer.json, sentencepiece, GGUF files), chat templates."""

from dpo_jax.tokenizers.loading import load
from dpo_jax.tokenizers.tokenizer import PROBE, EndOfTurn, Tokenizer

__all__ = ['PROBE', 'EndOfTurn', 'Tokenizer', 'load']
