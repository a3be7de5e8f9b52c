"""Text <-> ids: tokenizer.json, sentencepiece models, GGUF files; chats."""

from dpo_jax.tokenizers.loading import load
from dpo_jax.tokenizers.tokenizer import EndOfTurn, Tokenizer

__all__ = ['EndOfTurn', 'Tokenizer', 'load']
