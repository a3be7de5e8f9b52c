"""The vocabulary of a tokenizer.json, with parts of a text encoded separately.

Some of these files put a space before every text, the dummy prefix of
sentencepiece (Llama 2, Mistral). The start of a text gets it, as the checkpoint
expects; a continuation does not, else decoding would give a space that the text
did not have. To 'a' and ' a' such a file gives the same ids; here ' a' gets
both spaces, as in sentencepiece.
"""

import dataclasses
import functools
import itertools
import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any, ClassVar

import tokenizers

Ids = list[int]


@dataclasses.dataclass(frozen=True, repr=False)
class JsonVocabulary:
  """A `tokenizers.Tokenizer` as a `Vocabulary`.

  bos_id: None if the vocabulary has none.
  """

  backend: tokenizers.Tokenizer
  bos_id: int | None = None

  file: ClassVar[str] = 'tokenizer.json'
  # Else `transformers` replaces the pre-tokenizer by that of the model class in
  # config.json.
  config: ClassVar = {'tokenizer_class': 'PreTrainedTokenizerFast'}

  def encode(self, texts: Sequence[str], *, start: bool) -> list[Ids]:
    """Ids of each text.

    start: whether the texts are starts, or continuations of another text.
    """
    if self._prefix is None:
      return _encode(self.backend, texts)
    if not start:
      return [self._encode_continuation(text) for text in texts]
    found = _encode(self.backend, texts)
    for i, text in enumerate(texts):
      if text[:1] in (' ', '▁') and not self._prefix.exact:
        found[i] = self._encode_continuation(' ' + text)
    return found

  def encode_text(self, texts: Sequence[str], *, start: bool) -> list[Ids]:
    """`encode` that does not recognise control tokens in the texts.

    An unknown character still becomes the unknown token. ValueError if the
    characters still become a control token: one of a single character, or one
    that a normalizer produces.
    """
    found = self._literal.encode(texts, start=start)
    for i, text in enumerate(texts):
      if not self._control_ids.isdisjoint(found[i]):
        found[i] = self._encode_without_control(text, start=start)
    return found

  def encode_whole(self, texts: Sequence[str]) -> list[Ids]:
    """Ids as the checkpoint's own tokenizer gives them."""
    return self.encode(texts, start=True)

  def starts_after(self, ids: Ids) -> bool:
    """Whether the text after `ids` is encoded like the start of a text."""
    if self._prefix is None or not ids:
      return True
    if self._prefix.everywhere:
      return ids[-1] in self.added
    return ids == [self.bos_id]

  def decode(self, ids: Ids, *, start: bool) -> str:
    """The text of `ids`; added tokens as they are spelled."""
    parts, run, begins = [], [], start and self._prefix is not None
    for i, token in enumerate([*ids, None]):
      if token is not None and token not in self._split_at:
        run.append(token)
        continue
      text = self._bare.decode(run, skip_special_tokens=False)
      parts.append(text.removeprefix(' ') if begins else text)
      parts.append(self._split_at.get(token, ''))
      root = start and i == 0 and token == self.bos_id
      begins = self._prefix is not None and (self._prefix.everywhere or root)
      run = []
    return ''.join(parts)

  def offsets(self, text: str, *, start: bool) -> tuple[Ids, list[tuple]]:
    """(ids of `encode`, [begin, end) of each in characters)."""
    shift = start and self._prefix is not None
    found = self._without_postprocessor.encode(
      ' ' * shift + text, add_special_tokens=False
    )
    return found.ids, [
      (max(b - shift, 0), max(e - shift, 0)) for b, e in found.offsets
    ]

  def token_to_id(self, token: str) -> int | None:
    return self.backend.token_to_id(token)

  def id_to_token(self, i: int) -> str | None:
    return self.backend.id_to_token(i)

  @functools.cached_property
  def vocab_size(self) -> int:
    """One more than the largest id."""
    return 1 + max(self.backend.get_vocab(with_added_tokens=True).values())

  @functools.cached_property
  def added(self) -> dict[int, str]:
    """Added tokens, which are recognised in a text before any others."""
    found = self.backend.get_added_tokens_decoder()
    return {i: token.content for i, token in found.items()}

  @functools.cached_property
  def control(self) -> frozenset[str]:
    """The texts of special added tokens."""
    found = self.backend.get_added_tokens_decoder().values()
    return frozenset(token.content for token in found if token.special)

  def description(self) -> str:
    """A string that determines the ids of every text."""
    return self.backend.to_str()

  def save(self, path: pathlib.Path) -> None:
    self.backend.save(str(path))

  @functools.cached_property
  def _split_at(self) -> dict[int, str]:
    """Added tokens that must not pass through the backend's decoder.

    A byte-level decoder would read an added 'é' as the byte 0xE9.
    """
    decoder = self._bare.decoder
    if decoder is None:
      return {}
    return {
      i: text
      for i, text in self.added.items()
      if self._prefix is not None or decoder.decode([text]) != text
    }

  @functools.cached_property
  def _prefix(self) -> '_Prefix | None':
    return _find_prefix(json.loads(self.backend.to_str()))

  @functools.cached_property
  def _bare(self) -> tokenizers.Tokenizer:
    """The backend without dummy prefix, and without stripping a space."""
    if self._prefix is None:
      return self.backend
    content = json.loads(self.backend.to_str())
    names = ('normalizer', 'pre_tokenizer', 'decoder')
    parts = {name: _without_prefix(content[name]) for name in names}
    return _copy(self.backend, **parts)

  @functools.cached_property
  def _without_postprocessor(self) -> tokenizers.Tokenizer:
    # A post-processor may exclude a token's space from its offsets.
    return _copy(self._bare, post_processor=None)

  @functools.cached_property
  def _literal(self) -> 'JsonVocabulary':
    """The same vocabulary, which does not recognise control tokens."""
    backend = _copy(self.backend)
    backend.encode_special_tokens = True
    return JsonVocabulary(backend, self.bos_id)

  @functools.cached_property
  def _control_ids(self) -> frozenset[int]:
    return frozenset(map(self.token_to_id, self.control))

  @functools.cached_property
  def _unknown(self) -> int | None:
    """The id of the unknown token."""
    model = json.loads(self.backend.to_str())['model']
    if 'unk_id' in model:
      return model['unk_id']
    unknown = model.get('unk_token')
    return None if unknown is None else self.token_to_id(unknown)

  def _encode_without_control(self, text: str, *, start: bool) -> Ids:
    """Ids of a text that is cut after the first character of control tokens.

    Without a cut, merges or the pieces of a unigram model can produce one:
    files converted from sentencepiece may have the merge '</' 's>'.
    """
    spelled = '|'.join(map(re.escape, self.control))
    cuts = [m.start() + 1 for m in re.finditer(f'(?={spelled})', text)]
    ids = []
    for begin, end in itertools.pairwise([0, *cuts, len(text)]):
      begins = self.starts_after(ids) if ids else start
      ids += self._literal.encode([text[begin:end]], start=begins)[0]
    left = self._control_ids.intersection(ids) - {self._unknown}
    if left:
      raise ValueError(
        f'The control token {self.added[min(left)]!r} of this tokenizer cannot '
        f'be distinguished from the same characters as text, in {text!r:.200}.'
      )
    return ids

  def _encode_continuation(self, text: str) -> Ids:
    """Ids of a text that continues another one: without dummy prefix."""
    (ids,) = _encode(self._bare, [text])
    if self._prefix.everywhere and any(i in self.added for i in ids[:-1]):
      # The text after an added token gets a prefix; only the first has none.
      at, first = min(
        (text.index(self.added[i]), ids.index(i))
        for i in set(ids)
        if i in self.added and self.added[i] in text
      )
      return ids[:first] + _encode(self.backend, [text[at:]])[0]
    return ids


@dataclasses.dataclass(frozen=True)
class _Prefix:
  """A dummy prefix.

  everywhere: also after added tokens. exact: also before a space.
  """

  everywhere: bool
  exact: bool


def _copy(backend: tokenizers.Tokenizer, **parts: Any) -> tokenizers.Tokenizer:
  """The backend with some parts of its tokenizer.json replaced."""
  content = json.loads(backend.to_str()) | parts
  copy = tokenizers.Tokenizer.from_str(json.dumps(content))
  # It is not part of the file.
  copy.encode_special_tokens = backend.encode_special_tokens
  return copy


def _encode(backend: tokenizers.Tokenizer, texts: Sequence[str]) -> list[Ids]:
  try:
    found = backend.encode_batch_fast(texts, add_special_tokens=False)
  except TypeError as error:
    raise ValueError(f'Not all of these are text: {texts!r:.200}') from error
  return [encoding.ids for encoding in found]


def _steps(part: dict[str, Any] | None) -> list[dict[str, Any]]:
  """The steps of a normalizer, a pre-tokenizer or a decoder."""
  if part is None:
    return []
  if part['type'] != 'Sequence':
    return [part]
  (members,) = (value for key, value in part.items() if key != 'type')
  return [step for member in members for step in _steps(member)]


def _find_prefix(content: dict[str, Any]) -> _Prefix | None:
  for step in _steps(content['normalizer']):
    if step['type'] == 'Prepend' and step['prepend'] in ('▁', ' '):
      return _Prefix(everywhere=True, exact=True)
  for step in _steps(content['pre_tokenizer']):
    if step['type'] == 'Metaspace' and step['prepend_scheme'] != 'never':
      everywhere = step['prepend_scheme'] == 'always'
      return _Prefix(everywhere=everywhere, exact=False)
    if step['type'] == 'ByteLevel' and step['add_prefix_space']:
      return _Prefix(everywhere=True, exact=False)
  return None


def _without_prefix(part: dict[str, Any] | None) -> dict[str, Any] | None:
  kept = []
  for step in _steps(part):
    kind = step['type']
    if kind == 'Prepend' or (kind == 'Strip' and step.get('content') == ' '):
      continue
    if kind == 'Metaspace':
      step = step | {'prepend_scheme': 'never'}
    if kind == 'ByteLevel':
      step = step | {'add_prefix_space': False}
    kept.append(step)
  if part is None or part['type'] != 'Sequence':
    return kept[0] if kept else None
  (name,) = (key for key in part if key != 'type')
  return {'type': 'Sequence', name: kept}
