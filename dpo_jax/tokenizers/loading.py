"""Finds out what kind of vocabulary a URI holds."""

import os
import pathlib

from dpo_jax import assets
from dpo_jax.tokenizers import gguf_vocabulary, hf_folder, tokenizer

# Two texts whose ids, joined, must stand for the joined text.
_JOINS = (('a', 'b'), ('a', ' b'), ('a\n', 'b'), ('a ', 'b'), (' a', 'b'))


def load(uri: str | os.PathLike) -> tokenizer.Tokenizer:
  """The tokenizer at `uri`, any form that `assets.resolve` takes.

  A folder in Hugging Face layout, its tokenizer.json (the files beside it are
  read too: they say what ends a sequence), or a .gguf file. ValueError for
  anything else, for a damaged file and for a vocabulary that would be tokenised
  wrongly.
  """
  path = assets.resolve(uri)
  loaded = _read(path)
  _check_joins(loaded, path)
  return loaded


def _read(path: pathlib.Path) -> tokenizer.Tokenizer:
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


def _check_joins(loaded: tokenizer.Tokenizer, path: pathlib.Path):
  """ValueError if the ids of a prompt and of its completion can't be joined.

  White space alone is compared: a small vocabulary may lack the letters.
  """
  for first, second in _JOINS:
    text = first + second
    got = loaded.decode(loaded.encode(first) + loaded.encode(second))
    if got != text and ''.join(got.split()) == ''.join(text.split()):
      raise ValueError(
        f'{str(path)!r}: the joined ids of {first!r} and {second!r} stand for '
        f'{got!r}. This tokenizer adds a dummy prefix (a space before every '
        'text, as sentencepiece does for Llama 1 and 2) or drops white space: '
        'a prompt and its completion would be joined wrongly. Such '
        'vocabularies are not supported yet; byte-level BPE without a prefix '
        'space is (GPT-2, Llama 3, Qwen2, SmolLM2).'
      )
