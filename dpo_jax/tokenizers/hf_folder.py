"""Tokenizers in Hugging Face layout: tokenizer.json and the files beside it."""

import pathlib
from typing import Any

import tokenizers

from dpo_jax import assets, registry
from dpo_jax.tokenizers import tokenizer

_NAMES = ('bos', 'eos', 'unk', 'sep', 'pad', 'cls', 'mask')
_SPECIAL = tuple(f'{name}_token' for name in _NAMES)


def read(
  folder: pathlib.Path, name: str = 'tokenizer.json'
) -> tokenizer.Tokenizer:
  """Reads `folder / name` with what is known of BOS, EOS and chat."""
  if not (folder / name).exists():
    names = ', '.join(sorted(p.name for p in folder.iterdir()))
    raise ValueError(
      f'{str(folder)!r} has no {name}; it holds: {names or "nothing"}.'
      ' A sentencepiece .model or vocab.json alone is not supported yet.'
    )
  config = _read_json(folder / 'tokenizer_config.json')
  backend = _backend(folder / name, config.get('added_tokens_decoder', {}))
  special = _special_tokens(folder, config)
  bos_id = _id(backend, special.get('bos_token'))
  eos_id = _id(backend, special.get('eos_token'))
  if eos_id is None:
    eos_id = _eos_of_model(folder)
  return tokenizer.Tokenizer(
    backend=backend,
    eos_id=eos_id,
    bos_id=bos_id,
    add_bos=_adds_bos(backend, bos_id),
    chat_template=_chat_template(folder, config),
    special_tokens=special,
  )


def _read_json(path: pathlib.Path) -> dict[str, Any]:
  return assets.read_json(path) if path.exists() else {}


def _backend(path: pathlib.Path, added: dict) -> tokenizers.Tokenizer:
  try:
    backend = tokenizers.Tokenizer.from_file(str(path))
  except Exception as error:  # The Rust side raises plain Exception.
    raise assets.damaged(path, 'tokenizer.json', error) from error
  # They would cut and fill every text.
  backend.no_truncation()
  backend.no_padding()
  # Checkpoints fine-tuned long ago keep their own tokens in the config alone.
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


def _special_tokens(folder: pathlib.Path, config: dict) -> dict[str, str]:
  merged = _read_json(folder / 'special_tokens_map.json') | config
  tokens = {key: merged[key] for key in _SPECIAL if merged.get(key)}
  return {
    key: token['content'] if isinstance(token, dict) else token
    for key, token in tokens.items()
  }


def _id(backend: tokenizers.Tokenizer, token: str | None) -> int | None:
  if token is None:
    return None
  i = backend.token_to_id(token)
  if i is None:
    raise registry.unknown('special token', token, _added(backend))
  return i


def _added(backend: tokenizers.Tokenizer) -> list[str]:
  return [t.content for t in backend.get_added_tokens_decoder().values()]


def _eos_of_model(folder: pathlib.Path) -> int:
  """The model's own idea of EOS, where the tokenizer's files have none."""
  for name in ('generation_config.json', 'config.json'):
    eos = _read_json(folder / name).get('eos_token_id')
    if eos is not None:
      return eos[0] if isinstance(eos, list) else eos
  raise ValueError(
    f'Nothing in {str(folder)!r} says which token ends a sequence: expected '
    "'eos_token' in tokenizer_config.json or special_tokens_map.json, or "
    "'eos_token_id' in generation_config.json or config.json."
  )


def _adds_bos(backend: tokenizers.Tokenizer, bos_id: int | None) -> bool:
  """Whether tokenizer.json does; `add_bos_token` of its config has no say."""
  with_special = backend.encode('a', add_special_tokens=True).ids
  return bos_id is not None and with_special[:1] == [bos_id]


def _chat_template(folder: pathlib.Path, config: dict) -> str | None:
  file = folder / 'chat_template.jinja'
  if file.exists():
    return assets.read_text(file)
  template = config.get('chat_template')
  if isinstance(template, list):  # Several, by name.
    template = {t['name']: t['template'] for t in template}.get('default')
  return template
