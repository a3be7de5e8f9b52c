"""Finds out what kind of vocabulary a URI holds."""

import dataclasses
import os
import pathlib

from dpo_jax import assets
from dpo_jax.tokenizers import gguf_vocabulary, hf_folder, tokenizer

# Two texts whose ids, joined, must stand for the joined text.
_JOINS = (('a', 'b'), ('a', ' b'), ('a\n', 'b'), ('a ', 'b'), (' a', 'b'))


def load(
  uri: str | os.PathLike, *, model: str | os.PathLike | None = None
) -> tokenizer.Tokenizer:
  """The tokenizer at `uri`, any form that `assets.resolve` takes.

  A folder in Hugging Face layout with a tokenizer.json or a sentencepiece
  tokenizer.model, one of these files (those beside it are read too: they say
  what ends a sequence), or a .gguf file. model: where the weights are, if they
  may be elsewhere; what they say ends a text does so beside what the tokenizer
  says. ValueError for anything else, for a damaged file and for a vocabulary
  that would be tokenised wrongly.
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
    f'No tokenizer is read from {str(path)!r}: expected a folder with a '
    'tokenizer.json or a tokenizer.model, one of these files, or a .gguf file.'
  )


def _check_joins(loaded: tokenizer.Tokenizer, path: pathlib.Path):
  """ValueError if the ids of a prompt and of its completion can't be joined.

  Where white space is, not which: some vocabularies know one kind. A small one
  may lack the letters.
  """
  for first, second in _JOINS:
    (ids,) = loaded.encode_parts([first], start=True)
    (more,) = loaded.encode_parts([second], start=loaded.starts_after(ids))
    got, text = loaded.decode(ids + more), first + second
    places, letters = (
      [''.join(' ' if c.isspace() else c for c in t) for t in (got, text)],
      [''.join(t.split()) for t in (got, text)],
    )
    if places[0] != places[1] and letters[0] == letters[1]:
      raise ValueError(
        f'{str(path)!r}: the joined ids of {first!r} and {second!r} stand for '
        f'{got!r}. This tokenizer adds or drops white space where texts meet: '
        'a prompt and its completion would be joined wrongly.'
      )
