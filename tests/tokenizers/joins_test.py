"""Vocabularies whose ids of a prompt and a completion cannot be joined."""

import json

import pytest
import tokenizers as hf
from tokenizers import decoders, models, normalizers, pre_tokenizers

from dpo_jax import tokenizers

_BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
_REPLACE = decoders.Replace('▁', ' ')


def _metaspace(scheme):
  def dress(backend):
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    backend.decoder = decoders.Metaspace(prepend_scheme=scheme)

  return dress


def _prepend(backend):  # As Llama 2 is published.
  backend.normalizer = normalizers.Sequence(
    [normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')]
  )
  strip = decoders.Strip(' ', 1, 0)
  backend.decoder = decoders.Sequence([_REPLACE, decoders.Fuse(), strip])


def _replace(backend):  # As Gemma is.
  backend.normalizer = normalizers.Replace(' ', '▁')
  backend.decoder = decoders.Sequence([_REPLACE, decoders.Fuse()])


def _byte_level(*, prefix=False, normalizer=None):
  def dress(backend):
    if normalizer:
      backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    backend.decoder = decoders.ByteLevel()

  return dress


def _save(folder, alphabet, dress):
  vocab = {c: i for i, c in enumerate([*alphabet, '</s>'])}
  backend = hf.Tokenizer(models.BPE(vocab=vocab, merges=[]))
  backend.add_special_tokens(['</s>'])
  dress(backend)
  backend.save(str(folder / 'tokenizer.json'))
  config = json.dumps({'eos_token': '</s>'})
  (folder / 'tokenizer_config.json').write_text(config)
  return folder


@pytest.mark.parametrize(
  ('alphabet', 'dress'),
  [
    ('ab▁\n', _metaspace('first')),
    ('ab▁\n', _metaspace('always')),
    ('ab▁\n', _prepend),
    (_BYTES, _byte_level(prefix=True)),
    ('ab', lambda backend: None),  # No decoder: tokens joined by spaces.
  ],
)
def test_those_that_add_a_prefix_are_refused(tmp_path, alphabet, dress):
  _save(tmp_path, alphabet, dress)
  for path in (tmp_path, tmp_path / 'tokenizer.json'):
    with pytest.raises(ValueError, match=r'dummy prefix.*not supported yet'):
      tokenizers.load(path)


@pytest.mark.parametrize(
  ('alphabet', 'dress'),
  [
    ('ab▁\n', _metaspace('never')),
    ('ab▁\n', _replace),
    (_BYTES, _byte_level()),
    (_BYTES, _byte_level(normalizer=normalizers.NFC())),
    ('xyz', _byte_level()),  # It has neither the letters nor a space.
    ('', _byte_level()),
  ],
)
def test_those_that_add_none_are_not(tmp_path, alphabet, dress):
  tokenizers.load(_save(tmp_path, alphabet, dress))
