"""Sentencepiece models, read by the library that trained them.

A text gets the dummy prefix at its start and after BOS, if the model has one;
what goes on from there does not. Parts of a text keep the white space that some
models remove from the ends of a whole one: `encode_whole` alone gives the
library's ids there. A model's own normalisation (NFKC for many) applies to all.

Control symbols in a text are recognised, as chat templates need it; the library
by itself takes them for text.
"""

import dataclasses
import functools
import hashlib
import pathlib
import re
from collections.abc import Collection, Sequence
from typing import Any, ClassVar

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

Ids = list[int]
Model = sentencepiece_model_pb2.ModelProto
_KINDS = Model.SentencePiece


@dataclasses.dataclass(frozen=True, repr=False)
class SentencepieceVocabulary:
  """A model; more: what its folder adds, id -> (text, whether special)."""

  model: Model
  bos_id: int | None = None
  more: dict[int, tuple[str, bool]] = dataclasses.field(default_factory=dict)

  file: ClassVar[str] = 'tokenizer.model'

  def __post_init__(self):
    if self.model.trainer_spec.treat_whitespace_as_suffix:
      raise ValueError(
        'This sentencepiece model has white space at the end of its pieces '
        '(treat_whitespace_as_suffix), which is not supported.'
      )

  def encode(self, texts: Sequence[str], *, start: bool) -> list[Ids]:
    """Ids of texts that begin where one starts, or go on from another."""
    return self._encode(texts, start, self._pattern, self._keeping)

  def encode_text(self, texts: Sequence[str], *, start: bool) -> list[Ids]:
    """`encode` of texts whose control tokens are text.

    An unknown character still becomes the unknown token.
    """
    return self._encode(texts, start, self._literal_pattern, self._literal)

  def _encode(self, texts, start, pattern, library) -> list[Ids]:
    split = [self._split(text, pattern, start=start) for text in texts]
    plain = [
      ' ' * (begins and self._prefix and part != '') + part
      for parts in split
      for part, begins, _ in parts
    ]
    encoded = iter(library.encode(plain))
    return [
      [i for _, _, token in parts for i in (*next(encoded), *token)]
      for parts in split
    ]

  def encode_whole(self, texts: Sequence[str]) -> list[Ids]:
    """Ids as the library gives them, control symbols apart."""
    found = []
    for text in texts:
      ids = []
      for part, begins, token in self._split(text, self._pattern, start=True):
        ids += (self._library if begins else self._keeping).encode(part)
        ids += token
      found.append(ids)
    return found

  def starts_after(self, ids: Ids) -> bool:
    """Whether a text that goes on from `ids` begins as a whole one does."""
    return not ids or ids[-1] == self.bos_id

  def decode(self, ids: Ids, *, start: bool) -> str:
    """Text of ids; control symbols and <unk> as they are written."""
    parts, run, begins = [], [], start and self._prefix
    for token in [*ids, None]:
      if token is not None and token not in self._written:
        run.append(token)
        continue
      text = b''.join(map(self._bytes, run)).decode(errors='replace')
      parts.append(text.removeprefix(' ') if begins else text)
      parts.append(self._written.get(token, ''))
      begins = self._prefix and token is not None and token == self.bos_id
      run = []
    return ''.join(parts)

  def offsets(
    self, text: str, *, start: bool
  ) -> tuple[Ids, list[tuple[int, int]]]:
    """(ids, [begin, end) in characters of each); ids as `encode` has them."""
    shift = int(start and self._prefix and text != '')
    found = self._keeping.encode(' ' * shift + text, out_type='immutable_proto')
    return [p.id for p in found.pieces], [
      (max(p.begin - shift, 0), max(p.end - shift, 0)) for p in found.pieces
    ]

  def token_to_id(self, token: str) -> int | None:
    return self._ids.get(token)

  def id_to_token(self, i: int) -> str | None:
    if i in self.more:
      return self.more[i][0]
    pieces = self.model.pieces
    return pieces[i].piece if 0 <= i < len(pieces) else None

  @functools.cached_property
  def vocab_size(self) -> int:
    """One more than the largest id."""
    return 1 + max([len(self.model.pieces) - 1, *self.more])

  @functools.cached_property
  def added(self) -> dict[int, str]:
    """Tokens that are found in a text before all others."""
    own = self._of_kind(_KINDS.CONTROL, _KINDS.USER_DEFINED)
    return own | {i: text for i, (text, _) in self.more.items()}

  @functools.cached_property
  def control(self) -> frozenset[str]:
    """Texts of control symbols, and of special tokens that the folder adds."""
    more = (text for text, special in self.more.values() if special)
    return frozenset([*self._of_kind(_KINDS.CONTROL).values(), *more])

  def description(self) -> str:
    """All that decides which ids a text becomes."""
    content = self.model.SerializeToString(deterministic=True)
    more = sorted(self.more.items())
    return f'{hashlib.sha256(content).hexdigest()} {more}'

  @property
  def config(self) -> dict[str, Any]:
    """What tokenizer_config.json says beside the model.

    By it `transformers` reads a BPE model as this vocabulary, but for user
    symbols of several words and for '<unk>' in a text, which it takes for the
    token. Where there is a dummy prefix it also differs for a text that begins
    with white space, for which it adds none, and after BOS in a text, as chat
    templates write it: the library and this class put a prefix there, and it
    puts none. BOS that a tokenizer adds itself is no text. It has no class for
    unigram models with another normalisation than T5's.
    """
    added = {
      str(i): {'content': text, 'special': special}
      for i, (text, special) in self.more.items()
    }
    spec = self.model.trainer_spec
    is_bpe = spec.model_type == spec.BPE
    return {
      'tokenizer_class': 'LlamaTokenizer' if is_bpe else 'T5Tokenizer',
      'add_prefix_space': self._prefix,
      'added_tokens_decoder': added,
    }

  def save(self, path: pathlib.Path) -> None:
    path.write_bytes(self.model.SerializeToString())

  @property
  def _prefix(self) -> bool:
    return self.model.normalizer_spec.add_dummy_prefix

  @functools.cached_property
  def _library(self) -> sentencepiece.SentencePieceProcessor:
    return _processor(self.model)

  @functools.cached_property
  def _keeping(self) -> sentencepiece.SentencePieceProcessor:
    """It neither adds nor removes white space."""
    return _processor(_keeping(self.model))

  @functools.cached_property
  def _literal(self) -> sentencepiece.SentencePieceProcessor:
    """`_keeping` that makes no special token of a text.

    Those of a folder may be the model's own pieces: Gemma's <start_of_turn>.
    """
    model = _keeping(self.model)
    for i, (_, special) in self.more.items():
      if special and i < len(model.pieces):
        piece = model.pieces[i]
        if piece.type not in (_KINDS.UNKNOWN, _KINDS.BYTE):
          piece.type = _KINDS.CONTROL
    return _processor(model)

  def _of_kind(self, *kinds: int) -> dict[int, str]:
    return {
      i: p.piece for i, p in enumerate(self.model.pieces) if p.type in kinds
    }

  @functools.cached_property
  def _ids(self) -> dict[str, int]:
    own = {p.piece: i for i, p in enumerate(self.model.pieces)}
    return own | {text: i for i, (text, _) in self.more.items()}

  @functools.cached_property
  def _recognised(self) -> dict[str, int]:
    """What the library would not find in a text."""
    control = self._of_kind(_KINDS.CONTROL)
    return {text: i for i, text in control.items()} | {
      text: i for i, (text, _) in self.more.items()
    }

  @functools.cached_property
  def _written(self) -> dict[int, str]:
    """Tokens whose text is not that of their piece's bytes."""
    own = self._of_kind(_KINDS.CONTROL, _KINDS.UNKNOWN)
    return own | {i: text for i, (text, _) in self.more.items()}

  @functools.cached_property
  def _pattern(self) -> re.Pattern:
    return _any_of(self._recognised)

  @functools.cached_property
  def _literal_pattern(self) -> re.Pattern:
    return _any_of(self._recognised.keys() - self.control)

  def _split(
    self, text: str, pattern: re.Pattern, *, start: bool
  ) -> list[tuple[str, bool, list[int]]]:
    """[(plain text, whether a text begins there, the token after it)]."""
    # The library would drop half of a surrogate pair.
    try:
      text.encode()
    except (AttributeError, UnicodeEncodeError) as error:
      raise ValueError(f'This is not text: {text!r:.200}') from error
    parts, at = [], 0
    for match in pattern.finditer(text):
      token = self._recognised[match[0]]
      parts.append((text[at : match.start()], start, [token]))
      start, at = token == self.bos_id, match.end()
    return [*parts, (text[at:], start, [])]

  def _bytes(self, i: int) -> bytes:
    piece = self.model.pieces[i]
    if piece.type == _KINDS.BYTE:
      return bytes([int(piece.piece[1:-1], 16)])
    if self.model.normalizer_spec.escape_whitespaces:
      return piece.piece.replace('▁', ' ').encode()
    return piece.piece.encode()


def _any_of(texts: Collection[str]) -> re.Pattern:
  longest = sorted(texts, key=len, reverse=True)
  return re.compile('|'.join(map(re.escape, longest)) or r'(?!)')


def _keeping(model: Model) -> Model:
  """A copy that neither adds nor removes white space."""
  copy = Model()
  copy.CopyFrom(model)
  copy.normalizer_spec.add_dummy_prefix = False
  copy.normalizer_spec.remove_extra_whitespaces = False
  return copy


def _processor(model: Model) -> sentencepiece.SentencePieceProcessor:
  return sentencepiece.SentencePieceProcessor(
    model_proto=model.SerializeToString()
  )
