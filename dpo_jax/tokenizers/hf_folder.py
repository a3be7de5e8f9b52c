"""Reads tokenizers in Hugging Face layout: vocabulary, settings, templates."""

import dataclasses
import pathlib
from typing import Any

import tokenizers
from google.protobuf import message

from dpo_jax import assets, registry
from dpo_jax.tokenizers import (
  json_vocabulary,
  sentencepiece_vocabulary,
  tokenizer,
)
from dpo_jax.tokenizers import vocabulary as vocabulary_lib

_NAMES = ('bos', 'eos', 'unk', 'sep', 'pad', 'cls', 'mask')
_SPECIAL = tuple(f'{name}_token' for name in _NAMES)
_VOCABULARIES = ('tokenizer.json', 'tokenizer.model')


def read(folder: pathlib.Path, name: str | None = None) -> tokenizer.Tokenizer:
  """Reads the vocabulary `folder / name` and the settings beside it.

  name: None: tokenizer.json, or else tokenizer.model.
  """
  there = [n for n in (name, *_VOCABULARIES) if n and (folder / n).exists()]
  if name not in (None, *there[:1]) or not there:
    names = ', '.join(sorted(p.name for p in folder.iterdir()))
    raise ValueError(
      f'{str(folder)!r} has no {name or " and no ".join(_VOCABULARIES)}; it '
      f'holds: {names or "nothing"}. A vocab.json alone is not enough.'
    )
  config = _read_json(folder / 'tokenizer_config.json')
  special = _special_tokens(folder, config)
  path = folder / there[0]
  read_vocabulary = _of_model if path.suffix == '.model' else _of_json
  vocabulary, special, add_bos = read_vocabulary(path, config, special)
  bos_id, eos_id = (
    _id(vocabulary, special.get(key)) for key in ('bos_token', 'eos_token')
  )
  stops = eos_ids(folder)
  if eos_id is None and not stops:
    raise ValueError(
      f'No file in {str(folder)!r} says which token ends a sequence: expected '
      "'eos_token' in tokenizer_config.json or special_tokens_map.json, or "
      "'eos_token_id' in generation_config.json or config.json."
    )
  templates = _chat_templates(folder, config)
  return tokenizer.Tokenizer(
    vocabulary=dataclasses.replace(vocabulary, bos_id=bos_id),
    eos_id=stops[0] if eos_id is None else eos_id,
    bos_id=bos_id,
    add_bos=add_bos and bos_id is not None,
    chat_template=templates.pop('default', None),
    special_tokens=special,
    stops=stops,
    named_templates=templates,
  )


def _read_json(path: pathlib.Path) -> dict[str, Any]:
  return assets.read_json(path) if path.exists() else {}


def _of_json(path: pathlib.Path, config: dict, special: dict[str, str]):
  """(vocabulary, special tokens, whether it adds BOS)."""
  backend = _backend(path, config.get('added_tokens_decoder', {}))
  vocabulary = json_vocabulary.JsonVocabulary(backend)
  # tokenizer.json decides; `transformers` ignores the config's add_bos_token.
  bos_id = _id(vocabulary, special.get('bos_token'))
  with_special = backend.encode('a', add_special_tokens=True).ids
  return vocabulary, special, with_special[:1] == [bos_id]


def _backend(path: pathlib.Path, added: dict) -> tokenizers.Tokenizer:
  try:
    backend = tokenizers.Tokenizer.from_file(str(path))
  except Exception as error:  # The Rust side raises plain Exception.
    raise assets.damaged(path, 'tokenizer.json', error) from error
  # Some files ask for truncation and padding of every text.
  backend.no_truncation()
  backend.no_padding()
  # Old fine-tuned checkpoints have their added tokens only in the config.
  known = backend.get_added_tokens_decoder()
  for i, fields in sorted((int(i), f) for i, f in added.items()):
    if i not in known:
      token = tokenizers.AddedToken(**fields)
      add = backend.add_special_tokens if token.special else backend.add_tokens
      add([token])
      got = backend.token_to_id(token.content)
      if got != i:
        raise ValueError(
          f'tokenizer_config.json gives {token.content!r} the id {i}; in '
          f'{str(path)!r} it has {got}.'
        )
  return backend


def _of_model(path: pathlib.Path, config: dict, special: dict[str, str]):
  """(vocabulary, special tokens, whether it adds BOS)."""
  try:
    model = sentencepiece_vocabulary.Model.FromString(path.read_bytes())
  except message.DecodeError as error:
    raise assets.damaged(path, 'sentencepiece model', error) from error
  # A file that is truncated between two pieces can still be parsed.
  if not model.HasField('normalizer_spec') or not model.pieces:
    raise assets.damaged(path, 'sentencepiece model', 'no normalizer_spec')
  pieces, spec = [p.piece for p in model.pieces], model.trainer_spec
  own = {'bos_token': spec.bos_id, 'eos_token': spec.eos_id}
  own['unk_token'] = spec.unk_id
  special = {
    key: pieces[i] for key, i in own.items() if 0 <= i < len(pieces)
  } | special
  added = {
    text: (i, True)
    for text, i in _read_json(path.parent / 'added_tokens.json').items()
  } | {
    fields['content']: (int(i), fields.get('special', False))
    for i, fields in config.get('added_tokens_decoder', {}).items()
  }
  known = dict(enumerate(pieces))
  vocabulary = sentencepiece_vocabulary.SentencepieceVocabulary(
    model,
    added_by_folder={
      i: (t, s) for t, (i, s) in added.items() if known.get(i) != t or s
    },
  )
  return vocabulary, special, config.get('add_bos_token', True)


def _special_tokens(folder: pathlib.Path, config: dict) -> dict[str, str]:
  merged = _read_json(folder / 'special_tokens_map.json') | config
  tokens = {key: merged[key] for key in _SPECIAL if merged.get(key)}
  return {
    key: token['content'] if isinstance(token, dict) else token
    for key, token in tokens.items()
  }


def _id(vocabulary: vocabulary_lib.Vocabulary, token: str | None) -> int | None:
  if token is None:
    return None
  i = vocabulary.token_to_id(token)
  if i is None:
    added = list(vocabulary.added.values())
    raise registry.unknown('special token', token, added)
  return i


def eos_ids(folder: pathlib.Path) -> tuple[int, ...]:
  """The eos_token_id of the model's config files; () if there is none."""
  for name in ('generation_config.json', 'config.json'):
    eos = _read_json(folder / name).get('eos_token_id')
    if eos is not None:
      return tuple(eos) if isinstance(eos, list) else (eos,)
  return ()


def _chat_templates(folder: pathlib.Path, config: dict) -> dict[str, str]:
  """Chat templates by name; 'default' is the one without a name."""
  templates = config.get('chat_template') or {}
  if isinstance(templates, list):
    templates = {t['name']: t['template'] for t in templates}
  elif isinstance(templates, str):
    templates = {'default': templates}
  file = folder / 'chat_template.jinja'
  if file.exists():
    templates['default'] = assets.read_text(file)
  for file in sorted(folder.glob('additional_chat_templates/*.jinja')):
    templates[file.stem] = assets.read_text(file)
  return templates
