"""Finds out what kind of vocabulary a URI holds."""

import os

from dpo_jax import assets
from dpo_jax.tokenizers import gguf_vocabulary, hf_folder, tokenizer


def load(uri: str | os.PathLike) -> tokenizer.Tokenizer:
  """The tokenizer at `uri`, any form that `assets.resolve` takes.

  A folder in Hugging Face layout, its tokenizer.json (the files beside it are
  read too: they say what ends a sequence), or a .gguf file. ValueError for
  anything else and for a vocabulary that would be tokenised wrongly.
  """
  path = assets.resolve(uri)
  if path.is_dir():
    return hf_folder.read(path)
  if path.suffix == '.gguf':
    return gguf_vocabulary.read(path)
  if path.suffix == '.json':
    return hf_folder.read(path.parent, path.name)
  raise ValueError(
    f'No tokenizer is read from {str(path)!r}: expected a folder with a '
    'tokenizer.json, a tokenizer.json file or a .gguf file. Sentencepiece '
    '.model files are not supported yet.'
  )
