"""The interface of vocabularies."""

import pathlib
from collections.abc import Sequence
from typing import Any, Protocol

Ids = list[int]


class Vocabulary(Protocol):
  """What `Tokenizer` needs of a vocabulary; documented in `JsonVocabulary`.

  file: the name it is saved under. config: fields of tokenizer_config.json.
  """

  file: str
  config: dict[str, Any]

  def encode(self, texts: Sequence[str], *, start: bool) -> list[Ids]: ...
  def encode_text(self, texts: Sequence[str], *, start: bool) -> list[Ids]: ...
  def encode_whole(self, texts: Sequence[str]) -> list[Ids]: ...
  def starts_after(self, ids: Ids) -> bool: ...
  def decode(self, ids: Ids, *, start: bool) -> str: ...
  def offsets(
    self, text: str, *, start: bool
  ) -> tuple[Ids, list[tuple[int, int]]]: ...
  def token_to_id(self, token: str) -> int | None: ...
  def id_to_token(self, i: int) -> str | None: ...
  def description(self) -> str: ...
  def save(self, path: pathlib.Path) -> None: ...

  vocab_size: int
  added: dict[int, str]
  control: frozenset[str]
