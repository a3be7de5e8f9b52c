"""The vocabulary of a sentencepiece model, read by the sentencepiece library.

If the model has a dummy prefix, a text gets it at its start and after BOS, but
not where it continues another text. Some models remove white space from the
ends of a text; here only `encode_whole` does, parts of a text keep it. The
model's normalisation (often NFKC) applies to all.

Control symbols in a text are recognised, as chat templates need; the library
alone treats them as text.
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
  """A sentencepiece model as a `Vocabulary`.

  bos_id: None if the vocabulary has none. added_by_folder: tokens that the
  files beside the model add, id -> (text, whether special).
  """

  model: Model
  bos_id: int | None = None
  added_by_folder: dict[int, tuple[str, bool]] = dataclasses.field(
    default_factory=dict
  )

  file: ClassVar[str] = 'tokenizer.model'

  def __post_init__(self):
    if self.model.trainer_spec.treat_whitespace_as_suffix:
      raise ValueError(
        'This sentencepiece model has white space at the end of its pieces '
        '(treat_whitespace_as_suffix), which is not supported.'
      )

  def encode(self, texts: Sequence[str], *, start: bool) -> list[Ids]:
    """Ids of each text.

    start: whether the texts are starts, or continuations of another text.
    """
    return self._encode(texts, start, self._pattern, self._keeping)

  def encode_text(self, texts: Sequence[str], *, start: bool) -> list[Ids]:
    """`encode` that does not recognise control tokens in the texts.

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
    """The library's ids, except that control symbols are recognised."""
    found = []
    for text in texts:
      ids = []
      for part, begins, token in self._split(text, self._pattern, start=True):
        ids += (self._library if begins else self._keeping).encode(part)
        ids += token
      found.append(ids)
    return found

  def starts_after(self, ids: Ids) -> bool:
    """Whether the text after `ids` is encoded like the start of a text."""
    return not ids or ids[-1] == self.bos_id

  def decode(self, ids: Ids, *, start: bool) -> str:
    """The text of `ids`; control symbols and <unk> as they are spelled."""
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
    """(ids of `encode`, [begin, end) of each in characters)."""
    shift = int(start and self._prefix and text != '')
    found = self._keeping.encode(' ' * shift + text, out_type='immutable_proto')
    return [p.id for p in found.pieces], [
      (max(p.begin - shift, 0), max(p.end - shift, 0)) for p in found.pieces
    ]

  def token_to_id(self, token: str) -> int | None:
    return self._ids.get(token)

  def id_to_token(self, i: int) -> str | None:
    if i in self.added_by_folder:
      return self.added_by_folder[i][0]
    pieces = self.model.pieces
    return pieces[i].piece if 0 <= i < len(pieces) else None

  @functools.cached_property
  def vocab_size(self) -> int:
    """One more than the largest id."""
    return 1 + max([len(self.model.pieces) - 1, *self.added_by_folder])

  @functools.cached_property
  def added(self) -> dict[int, str]:
    """Tokens that are recognised in a text before any others."""
    own = self._of_kind(_KINDS.CONTROL, _KINDS.USER_DEFINED)
    return own | {i: text for i, (text, _) in self.added_by_folder.items()}

  @functools.cached_property
  def control(self) -> frozenset[str]:
    """The texts of control symbols and of the folder's special tokens."""
    more = (text for text, special in self.added_by_folder.values() if special)
    return frozenset([*self._of_kind(_KINDS.CONTROL).values(), *more])

  def description(self) -> str:
    """A string that determines the ids of every text."""
    content = self.model.SerializeToString(deterministic=True)
    more = sorted(self.added_by_folder.items())
    return f'{hashlib.sha256(content).hexdigest()} {more}'

  @property
  def config(self) -> dict[str, Any]:
    """The fields of the tokenizer_config.json beside the saved model.

    With them `transformers` gives the same ids for a BPE model, except for user
    symbols of several words, and for '<unk>' in a text, which it takes for the
    token. With a dummy prefix it also differs for a text that begins with white
    space, and after a BOS in a text, as chat templates write it: it adds no
    prefix there, the library and this class do. (This does not concern a BOS
    that the tokenizer itself adds.) For unigram models it has only T5's class,
    with T5's normalisation.
    """
    added = {
      str(i): {'content': text, 'special': special}
      for i, (text, special) in self.added_by_folder.items()
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
    """The library with a model that neither adds nor removes white space."""
    return _processor(_keeping(self.model))

  @functools.cached_property
  def _literal(self) -> sentencepiece.SentencePieceProcessor:
    """`_keeping` with a model that gives no text the id of a special token.

    The folder's special tokens may be pieces of the model, such as Gemma's
    <start_of_turn>: here they become control symbols.
    """
    model = _keeping(self.model)
    for i, (_, special) in self.added_by_folder.items():
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
    return own | {text: i for i, (text, _) in self.added_by_folder.items()}

  @functools.cached_property
  def _recognised(self) -> dict[str, int]:
    """Tokens that the library does not recognise in a text."""
    control = self._of_kind(_KINDS.CONTROL)
    return {text: i for i, text in control.items()} | {
      text: i for i, (text, _) in self.added_by_folder.items()
    }

  @functools.cached_property
  def _written(self) -> dict[int, str]:
    """Tokens whose text is their spelling, not the bytes of their piece."""
    own = self._of_kind(_KINDS.CONTROL, _KINDS.UNKNOWN)
    return own | {i: text for i, (text, _) in self.added_by_folder.items()}

  @functools.cached_property
  def _pattern(self) -> re.Pattern:
    return _any_of(self._recognised)

  @functools.cached_property
  def _literal_pattern(self) -> re.Pattern:
    return _any_of(self._recognised.keys() - self.control)

  def _split(
    self, text: str, pattern: re.Pattern, *, start: bool
  ) -> list[tuple[str, bool, list[int]]]:
    """[(plain text, whether it is encoded as a start, [token after it])].

    The last one has no token after it.
    """
    # The library silently drops half a surrogate pair.
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
