"""Reads the vocabularies of GGUF files: byte-level BPE and sentencepiece.

A file with byte-level BPE names its pre-tokenizer; see gguf_pre_tokenizers.py.
A file with sentencepiece (model 'llama') has the pieces, their scores and
types; the other settings of a sentencepiece model are the same in all such
files.
"""

import collections
import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any

import tokenizers
from absl import logging
from tokenizers import decoders, models, normalizers, processors

from dpo_jax import assets
from dpo_jax.tokenizers import (
  gguf_pre_tokenizers,
  json_vocabulary,
  sentencepiece_vocabulary,
  tokenizer,
)

# tokenizer.ggml.token_type
_UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 2, 3, 4, 5, 6
_ENDS = ('eos_token_id', 'eot_token_id', 'eom_token_id')
_SPECIAL = {
  'bos_token': 'bos_token_id',
  'eos_token': 'eos_token_id',
  'unk_token': 'unknown_token_id',
  'pad_token': 'padding_token_id',
}


def read(path: str | os.PathLike) -> tokenizer.Tokenizer:
  """Reads the vocabulary of a GGUF file.

  A file with byte-level BPE that names no pre-tokenizer gets GPT-2's, with a
  warning. ValueError for other models, unknown pre-tokenizers, damaged files.
  """
  fields = assets.read_gguf(path).fields
  get = functools.partial(_get, fields)
  model = get('ggml.model')
  if model not in _READERS:
    raise ValueError(
      f'{str(path)!r}: tokenizer.ggml.model {model!r} is not supported; known: '
      'gpt2 (byte-level BPE), llama (sentencepiece). Use the tokenizer.json '
      'that was published with the model: set model.tokenizer to its folder.'
    )
  names, read_vocabulary = _READERS[model]
  for name in names:
    if not isinstance(get(f'ggml.{name}'), list):
      raise ValueError(
        f'{str(path)!r} has no list tokenizer.ggml.{name}, which {model!r} '
        'vocabularies need: convert the model again.'
      )
  tokens = get('ggml.tokens')
  ids = {name: get(f'ggml.{key}') for name, key in _SPECIAL.items()}
  if ids['eos_token'] is None:
    raise ValueError(f'{str(path)!r} has no tokenizer.ggml.eos_token_id.')
  for name, i in ids.items():
    if i is not None and i >= len(tokens):
      raise ValueError(
        f'{str(path)!r}: {_SPECIAL[name]} is {i} of {len(tokens)} tokens.'
      )
  bos_id = ids['bos_token']
  try:
    _check_once(tokens)
    vocabulary, adds_bos = read_vocabulary(tokens, get)
    vocabulary = dataclasses.replace(vocabulary, bos_id=bos_id)
    # The libraries validate a vocabulary when it is first used.
    vocabulary.encode([''], start=True)
  except Exception as error:  # The Rust side raises plain Exception.
    raise ValueError(f'{str(path)!r}: {error}') from error
  named = 'tokenizer.chat_template.'
  return tokenizer.Tokenizer(
    vocabulary=vocabulary,
    eos_id=ids['eos_token'],
    bos_id=bos_id,
    add_bos=bos_id is not None and bool(get('ggml.add_bos_token', adds_bos)),
    chat_template=get('chat_template'),
    special_tokens={k: tokens[i] for k, i in ids.items() if i is not None},
    stops=_ends(get),
    named_templates={
      key.removeprefix(named): field.contents()
      for key, field in fields.items()
      if key.startswith(named)
    },
  )


def eos_ids(path: str | os.PathLike) -> tuple[int, ...]:
  """The ids of a GGUF file that end a text, a turn or a message; may be ()."""
  return _ends(functools.partial(_get, assets.read_gguf(path).fields))


def _get(fields, key: str, default: Any = None) -> Any:
  field = fields.get(f'tokenizer.{key}')
  return default if field is None else field.contents()


def _ends(get: Callable) -> tuple[int, ...]:
  return tuple(
    i for i in (get(f'ggml.{key}') for key in _ENDS) if i is not None
  )


def _byte_level(tokens: list[str], get: Callable):
  """(vocabulary, whether to add BOS if the file lacks add_bos_token)."""
  name = get('ggml.pre', 'default')
  if name == 'default':
    logging.warning(
      "The GGUF file does not name its pre-tokenizer: GPT-2's is used. If the "
      'model has another one, set model.tokenizer to the folder of its own '
      'tokenizer.json.'
    )
  pre = gguf_pre_tokenizers.find(name)
  merges, kinds = get('ggml.merges'), get('ggml.token_type', [])
  backend = _backend(pre, tokens, merges, kinds)
  bos_id = get('ggml.bos_token_id')
  if bos_id is not None and get('ggml.add_bos_token', pre.add_bos):
    backend.post_processor = processors.TemplateProcessing(
      single=[tokens[bos_id], '$A'], special_tokens=[(tokens[bos_id], bos_id)]
    )
  return json_vocabulary.JsonVocabulary(backend), pre.add_bos


def _sentencepiece(tokens: list[str], get: Callable):
  """(vocabulary, whether to add BOS if the file lacks add_bos_token)."""
  model = sentencepiece_vocabulary.Model()
  kinds, unknown = _with_one_unknown(
    tokens, get('ggml.token_type'), get('ggml.unknown_token_id')
  )
  for token, score, kind in zip(tokens, get('ggml.scores'), kinds, strict=True):
    # In user-defined symbols converters write a space, not '▁'.
    piece = token.replace(' ', '▁')
    model.pieces.add(piece=piece, score=score, type=kind)
  trainer, normalizer = model.trainer_spec, model.normalizer_spec
  trainer.model_type = trainer.BPE
  trainer.vocab_size = len(tokens)
  trainer.byte_fallback = _BYTE in kinds
  trainer.unk_id = unknown
  for name in ('bos', 'eos'):
    i = get(f'ggml.{name}_token_id')
    setattr(trainer, f'{name}_id', -1 if i is None else i)
  normalizer.name = 'identity'
  normalizer.add_dummy_prefix = bool(get('ggml.add_space_prefix', True))
  normalizer.remove_extra_whitespaces = bool(
    get('ggml.remove_extra_whitespaces', False)
  )
  return sentencepiece_vocabulary.SentencepieceVocabulary(model), True


def _with_one_unknown(
  tokens: list[str], kinds: list[int], unknown: int | None
) -> tuple[list[int], int]:
  """(token types with exactly one UNKNOWN, its id).

  Converters also gave this type to padding tokens, which are unused; and they
  gave the unknown token the type CONTROL if the tokenizer called it special
  (Phi-3). If the file names no unknown token, it is the first of type UNKNOWN,
  as padding comes last.
  """
  if unknown is None:
    if _UNKNOWN not in kinds:
      raise ValueError(
        'there is no tokenizer.ggml.unknown_token_id, and no token has the '
        f'type UNKNOWN ({_UNKNOWN}): convert the model again.'
      )
    unknown = kinds.index(_UNKNOWN)
  if kinds[unknown] not in (_UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED):
    raise ValueError(
      f'tokenizer.ggml.unknown_token_id is {unknown}, {tokens[unknown]!r}, '
      f'of type {kinds[unknown]}, plain text. Expected a token of type '
      f'UNKNOWN ({_UNKNOWN}) or CONTROL ({_CONTROL}): convert the model again.'
    )
  kinds = [_UNUSED if kind == _UNKNOWN else kind for kind in kinds]
  kinds[unknown] = _UNKNOWN
  return kinds, unknown


def _check_once(tokens: list[str]) -> None:
  twice = [t for t, n in collections.Counter(tokens).items() if n > 1]
  if twice:
    raise ValueError(f'tokenizer.ggml.tokens has tokens twice: {twice[:10]}.')


def _backend(
  pre: gguf_pre_tokenizers.GgufPreTokenizer, tokens, merges, types
) -> tokenizers.Tokenizer:
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


_READERS = {
  'gpt2': (('tokens', 'merges'), _byte_level),
  'llama': (('tokens', 'scores', 'token_type'), _sentencepiece),
}
