"""Byte-level BPE vocabularies inside GGUF files.

A GGUF file names its pre-tokenizer (`tokenizer.ggml.pre`); what the name means
is known to the programs that read it. `_PRE` says it as the tokenizer.json that
was published with the model does.
"""

import collections
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from dpo_jax import assets, registry
from dpo_jax.tokenizers import tokenizer

_CONTROL, _USER_DEFINED = 3, 4  # tokenizer.ggml.token_type
_SPECIAL = {
  'bos_token': 'bos_token_id',
  'eos_token': 'eos_token_id',
  'unk_token': 'unknown_token_id',
  'pad_token': 'padding_token_id',
}


def _gpt2():
  return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _digits():
  # Each numeral stands alone before GPT-2's rule sees what is between them, so
  # that white space before a number is one run: '\n\n1' is '\n\n', '1' where
  # GPT-2 has '\n', '\n', '1'.
  return pre_tokenizers.Sequence(
    [pre_tokenizers.Digits(individual_digits=True), _gpt2()]
  )


def _split(numerals: str):
  pattern = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + numerals + '|'
    r' ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
  )
  return pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(tokenizers.Regex(pattern), 'isolated'),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )


class _Pre(NamedTuple):
  """What a pre-tokenizer's name stands for, beside the vocabulary."""

  split: Callable[[], pre_tokenizers.PreTokenizer]
  nfc: bool = False
  ignore_merges: bool = False  # A word in the vocabulary is never merged.
  add_bos: bool = False  # Where the file doesn't say.


_LLAMA3 = _Pre(lambda: _split(r'\p{N}{1,3}'), ignore_merges=True, add_bos=True)
_PRE = {
  'default': _Pre(_gpt2),
  'gpt-2': _Pre(_gpt2),
  'smollm': _Pre(_digits),
  'starcoder': _Pre(_digits),
  'llama-bpe': _LLAMA3,
  'llama3': _LLAMA3,
  'llama-v3': _LLAMA3,
  'qwen2': _Pre(lambda: _split(r'\p{N}'), nfc=True),
}


def read(path: str | os.PathLike) -> tokenizer.Tokenizer:
  """Reads the vocabulary of a GGUF file.

  A file that names no pre-tokenizer gets GPT-2's. ValueError for other models
  than byte-level BPE and for pre-tokenizers that are not known.
  """
  fields = assets.read_gguf(path).fields

  def get(key: str, default: Any = None) -> Any:
    field = fields.get(f'tokenizer.{key}')
    return default if field is None else field.contents()

  model = get('ggml.model')
  if model != 'gpt2':
    raise ValueError(
      f'{str(path)!r}: tokenizer.ggml.model {model!r} is not supported yet'
      f'{" (sentencepiece)" if model == "llama" else ""}; known: gpt2 '
      '(byte-level BPE).'
    )
  pre = registry.lookup(_PRE, get('ggml.pre', 'default'), 'tokenizer.ggml.pre')
  tokens, merges = get('ggml.tokens'), get('ggml.merges')
  for name, value in (('tokens', tokens), ('merges', merges)):
    if not isinstance(value, list):
      raise ValueError(
        f'{str(path)!r} has no list tokenizer.ggml.{name}, which byte-level '
        'BPE needs: convert the model again.'
      )
  ids = {name: get(f'ggml.{key}') for name, key in _SPECIAL.items()}
  if ids['eos_token'] is None:
    raise ValueError(f'{str(path)!r} has no tokenizer.ggml.eos_token_id.')
  for name, i in ids.items():
    if i is not None and i >= len(tokens):
      raise ValueError(
        f'{str(path)!r}: {_SPECIAL[name]} is {i} of {len(tokens)} tokens.'
      )
  try:
    backend = _backend(pre, tokens, merges, get('ggml.token_type', []))
  except Exception as error:  # The Rust side raises plain Exception.
    raise ValueError(f'{str(path)!r}: {error}') from error
  bos_id = ids['bos_token']
  add_bos = bos_id is not None and bool(get('ggml.add_bos_token', pre.add_bos))
  if add_bos:
    backend.post_processor = processors.TemplateProcessing(
      single=[tokens[bos_id], '$A'], special_tokens=[(tokens[bos_id], bos_id)]
    )
  return tokenizer.Tokenizer(
    backend=backend,
    eos_id=ids['eos_token'],
    bos_id=bos_id,
    add_bos=add_bos,
    chat_template=get('chat_template'),
    special_tokens={k: tokens[i] for k, i in ids.items() if i is not None},
  )


def _backend(pre: _Pre, tokens, merges, types) -> tokenizers.Tokenizer:
  twice = [t for t, n in collections.Counter(tokens).items() if n > 1]
  if twice:
    raise ValueError(f'tokenizer.ggml.tokens has these twice: {twice[:10]}.')
  backend = tokenizers.Tokenizer(
    models.BPE(
      vocab={token: i for i, token in enumerate(tokens)},
      merges=[tuple(merge.split(' ')) for merge in merges],
      ignore_merges=pre.ignore_merges,
    )
  )
  if pre.nfc:
    backend.normalizer = normalizers.NFC()
  backend.pre_tokenizer = pre.split()
  backend.decoder = decoders.ByteLevel()
  for kind, add in (
    (_CONTROL, backend.add_special_tokens),
    (_USER_DEFINED, backend.add_tokens),
  ):
    chosen = [t for t, has in zip(tokens, types) if has == kind]
    add([tokenizers.AddedToken(t, normalized=False) for t in chosen])
  return backend
