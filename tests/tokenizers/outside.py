"""Test vectors of other projects for tokenizers and templates.

$DPO_JAX_SHARED_DATA names the folder that holds `vectors/`. They are those of
llama.cpp, whose .inp holds texts and .out a line of ids for each, and those of
swift-transformers and transformers.js; `transformers` made the ids of all.
"""

import functools
import gzip
import json
import os
import pathlib
import tempfile

import pytest

from dpo_jax import tokenizers

_FOLDER = 'DPO_JAX_SHARED_DATA'


def folder(name):
  """The folder vectors/NAME; skips the test if it does not exist."""
  if not os.environ.get(_FOLDER):
    pytest.skip(f'{_FOLDER} names no folder with vectors/ of other projects')
  found = pathlib.Path(os.environ[_FOLDER]) / 'vectors' / name
  if not found.is_dir():
    pytest.skip(f'there is no {found}')
  return found


def read_json(name):
  """The content of vectors/NAME, or of all files of a folder together."""
  *_, file = name.rpartition('/')
  return json.loads((folder(name.removesuffix(f'/{file}')) / file).read_text())


@functools.cache
def gguf_tokenizer(name):
  """Our tokenizer of llama.cpp's vocabulary `name`; skips if missing."""
  path = folder('llama.cpp') / f'ggml-vocab-{name}.gguf'
  if path.exists():
    return tokenizers.load(path)
  packed = path.with_name(f'{path.name}.gz')
  if not packed.exists():
    pytest.skip(f'vectors/llama.cpp holds the ids of {name} alone')
  with tempfile.TemporaryDirectory() as temp:
    path = pathlib.Path(temp) / path.name
    path.write_bytes(gzip.decompress(packed.read_bytes()))
    return tokenizers.load(path)


def differing(found, expected):
  """The keys whose values differ; asserts equal, non-empty sets of keys."""
  assert found.keys() == expected.keys() and found
  return {key for key in found if found[key] != expected[key]}
