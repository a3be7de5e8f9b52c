"""A vocabulary with what a training run needs to know of it."""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from typing import Any

import tokenizers

from dpo_jax import assets
from dpo_jax.tokenizers import chat

# A stale one beside those that `save` writes would change what they say.
_FILES = (
  'tokenizer.json',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'added_tokens.json',
  'chat_template.jinja',
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokenizer:
  """Text <-> ids.

  bos_id: None if the vocabulary has none. add_bos: whether the checkpoint's own
  tokenizer starts every text with it; `encode` never does.
  special_tokens: 'bos_token' etc. -> text, as chat templates refer to them.
  """

  backend: tokenizers.Tokenizer
  eos_id: int
  bos_id: int | None
  add_bos: bool
  chat_template: str | None
  special_tokens: dict[str, str]

  def encode(self, text: str) -> list[int]:
    """Ids of `text`; nothing is added, special tokens in it are recognised.

    A byte that the vocabulary lacks is dropped, as the checkpoint's own
    tokenizer does (SmolLM2's has no token for six of the control characters).
    ValueError for text with half of a surrogate pair, which no UTF-8 can hold.
    """
    return self.encode_batch([text])[0]

  def encode_batch(self, texts: list[str]) -> list[list[int]]:
    """`encode` of each text, on all cores."""
    try:
      found = self.backend.encode_batch_fast(texts, add_special_tokens=False)
    except TypeError as error:
      raise ValueError(f'Not all of these are text: {texts!r:.200}') from error
    return [encoding.ids for encoding in found]

  def decode(self, ids: list[int]) -> str:
    """The text of `ids`, special tokens included.

    Inverts `encode` up to the vocabulary's own normalisation (NFC for Qwen2,
    none for GPT-2, SmolLM2 and Llama 3). Bytes that are no UTF-8, such as half
    a character, become U+FFFD.
    """
    parts, start = [], 0
    for i, token in enumerate(ids):
      if token in self._literals:
        parts += [self._decode(ids[start:i]), self._literals[token]]
        start = i + 1
    return ''.join([*parts, self._decode(ids[start:])])

  def _decode(self, ids):
    return self.backend.decode(list(ids), skip_special_tokens=False)

  @functools.cached_property
  def _literals(self) -> dict[int, str]:
    """Added tokens whose text the decoder would take for something else.

    A byte-level decoder reads an added 'é' as the byte 0xE9.
    """
    if self.backend.decoder is None:
      return {}
    added = self.backend.get_added_tokens_decoder()
    return {
      i: token.content
      for i, token in added.items()
      if self.backend.decoder.decode([token.content]) != token.content
    }

  @functools.cached_property
  def vocab_size(self) -> int:
    """One more than the largest id."""
    return 1 + max(self.backend.get_vocab(with_added_tokens=True).values())

  @functools.cached_property
  def fingerprint(self) -> str:
    """SHA-256 of all that decides which ids a record becomes."""
    parts = [self.backend.to_str(), self.eos_id, self.bos_id, self.add_bos]
    parts += [self.chat_template, sorted(self.special_tokens.items())]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

  def apply_chat(
    self,
    messages: list[dict[str, Any]],
    *,
    add_generation_prompt: bool = False,
    **variables: Any,
  ) -> str:
    """The text of a conversation by the checkpoint's template.

    Messages are {'role', 'content'} dicts; `variables` are the template's own
    (tools, date_string, ...). ValueError without a template, and where the
    template refuses the conversation.
    """
    if self.chat_template is None:
      raise ValueError(
        'This tokenizer has no chat template: records of it need plain text '
        "prompts, or a 'chat_template' in its tokenizer_config.json."
      )
    return chat.render(
      self.chat_template,
      messages=messages,
      add_generation_prompt=add_generation_prompt,
      **self.special_tokens,
      **variables,
    )

  def save(self, folder: str | os.PathLike) -> None:
    """Writes tokenizer.json and tokenizer_config.json into `folder`.

    `tokenizers.load` and `transformers` read what is there as this tokenizer;
    weights may lie beside it. FileExistsError if files of a tokenizer do.
    """
    folder = pathlib.Path(folder)
    there = [name for name in _FILES if (folder / name).exists()]
    if there:
      raise FileExistsError(f'{str(folder)!r} has {", ".join(there)} already.')
    config = {
      # Else `transformers` rebuilds the pre-tokenizer that it knows the model
      # in config.json by.
      'tokenizer_class': 'PreTrainedTokenizerFast',
      'clean_up_tokenization_spaces': False,
      'add_bos_token': self.add_bos,
      'eos_token': self.backend.id_to_token(self.eos_id),
      **self.special_tokens,
    }
    if self.chat_template is not None:
      # In a file of its own, '\r\n' would be read as '\n'.
      config['chat_template'] = self.chat_template
    with assets.atomic_path(folder / 'tokenizer.json') as temp:
      self.backend.save(str(temp))
    with assets.atomic_path(folder / 'tokenizer_config.json') as temp:
      temp.write_text(json.dumps(config, indent=2) + '\n', 'utf-8')
