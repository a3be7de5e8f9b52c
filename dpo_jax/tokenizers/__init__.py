"""Text <-> ids: tokenizer.json, sentencepiece models, GGUF files; chats."""

from dpo_jax.tokenizers.loading import load
from dpo_jax.tokenizers.tokenizer import PROBE, EndOfTurn, Tokenizer

__all__ = ['PROBE', 'EndOfTurn', 'Tokenizer', 'load']
