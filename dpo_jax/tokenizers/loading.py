"""Loads the tokenizer at a URI, whatever its format."""

import dataclasses
import os
import pathlib

from dpo_jax import assets
from dpo_jax.tokenizers import gguf_vocabulary, hf_folder, tokenizer

# Pairs of texts whose joined ids must decode to the joined text.
_TEXT_PAIRS = (('a', 'b'), ('a', ' b'), ('a\n', 'b'), ('a ', 'b'), (' a', 'b'))


def load(
  uri: str | os.PathLike, *, model: str | os.PathLike | None = None
) -> tokenizer.Tokenizer:
  """The tokenizer at `uri`.

  uri: of a folder in Hugging Face layout with a tokenizer.json or a
  sentencepiece tokenizer.model, of one of these files (the files beside it are
  read too: they say which token ends a sequence), or of a .gguf file; see
  `assets.resolve`.
  model: the URI of the weights, if it may be another one; their end-of-sequence
  tokens are added to the tokenizer's.
  ValueError for anything else, for a damaged file, and for a vocabulary whose
  ids cannot be joined.
  """
  path = assets.resolve(uri)
  loaded = _read(path)
  _check_joins(loaded, path)
  if model is None or model == uri:
    return loaded
  path = assets.resolve(model)
  ends = (hf_folder if path.is_dir() else gguf_vocabulary).eos_ids(path)
  stops = tuple(dict.fromkeys([*loaded.stops, *ends]))
  return dataclasses.replace(loaded, stops=stops)


def _read(path: pathlib.Path) -> tokenizer.Tokenizer:
  if path.is_dir():
    return hf_folder.read(path)
  if path.suffix == '.gguf':
    return gguf_vocabulary.read(path)
  if path.suffix in ('.json', '.model'):
    return hf_folder.read(path.parent, path.name)
  raise ValueError(
    f'Cannot read a tokenizer from {str(path)!r}: expected a folder with a '
    'tokenizer.json or a tokenizer.model, one of these files, or a .gguf file.'
  )


def _check_joins(loaded: tokenizer.Tokenizer, path: pathlib.Path):
  """ValueError if joining ids of a prompt and a completion changes white space.

  Compares where white space is, not which: some vocabularies have only one
  kind. A pair is skipped if letters are lost, as small vocabularies may lack
  them.
  """
  for first, second in _TEXT_PAIRS:
    (ids,) = loaded.encode_parts([first], start=True)
    (more,) = loaded.encode_parts([second], start=loaded.starts_after(ids))
    got, text = loaded.decode(ids + more), first + second
    spaced, letters = (
      [''.join(' ' if c.isspace() else c for c in t) for t in (got, text)],
      [''.join(t.split()) for t in (got, text)],
    )
    if spaced[0] != spaced[1] and letters[0] == letters[1]:
      raise ValueError(
        f'{str(path)!r}: the joined ids of {first!r} and {second!r} decode to '
        f'{got!r}. This tokenizer adds or drops white space where texts meet: '
        'a prompt and its completion would be joined wrongly.'
      )
