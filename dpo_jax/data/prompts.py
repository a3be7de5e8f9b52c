"""Prompts to sample from, as training reads and encodes them."""

import collections
import sys
import types
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from absl import logging

from dpo_jax import assets
from dpo_jax.data import (
  contract,
  drops,
  encoding,
  judgements,
  messages,
  records,
  rendering,
)
from dpo_jax.data.sources import files, generic


class Prompt(NamedTuple):
  """Text or messages, where they were given, and what is around them.

  answers: those of its row, which may hold a part of the conversation.
  """

  content: Any
  where: str
  around: Mapping[str, Any] = types.MappingProxyType({})
  answers: Sequence[Any] = ()


def read(file: str) -> list[Prompt]:
  """The prompts of a file; ValueError names file and line."""
  if file.endswith('.txt'):
    content = assets.read_text(assets.resolve(file)).removeprefix('\ufeff')
    lines = enumerate(content.split('\n'), start=1)
    prompts = [Prompt(x, f'{file}:{n}') for n, x in lines if x.strip()]
  else:
    prompts = _rows(file)
  if not prompts:
    raise ValueError(f'--prompts {file!r} holds no prompts.')
  return prompts


def _rows(file: str) -> list[Prompt]:
  """The prompts of rows, read as rows of training data are."""
  found = files.find(file, (*generic.SUFFIXES, '.txt'))
  prompts, unread = [], collections.Counter()
  for row in files.read(found, files.Columns()):
    try:
      if isinstance(row, drops.RowError):
        raise row
      asked = judgements.question(row.value)
    except drops.RowError as error:
      at = row.row if isinstance(row, drops.RowError) else row.line
      raise ValueError(f'{file}:{at}: {error.detail}') from error
    where = f'{file}:{row.line}'
    prompts.append(Prompt(asked.prompt, where, asked.around, asked.answers))
    unread.update(asked.unread)
  if unread:
    logging.warning('%s: fields that nothing reads (rows): %s.', file, unread)
  return prompts


def encode(
  prompts: list[Prompt], tokenizer: Any, *, chat_format: bool
) -> list[list[int]]:
  """Ids by the rules of training: contract.py; ValueError says where not.

  chat_format: whether text is what a user says rather than what is continued.
  """
  rules = contract.resolve(tokenizer, max_length=sys.maxsize, truncation='drop')
  render = rendering.Render(tokenizer, chat=chat_format)
  found = []
  for content, where, around, answers in prompts:
    try:
      texts = messages.question(content, answers, render, around)
      # The rules are those of records, which have completions; any one does.
      record = records.Record(
        texts.prompt,
        ('.',),
        ((0,),),
        rendered=texts.rendered,
        literal=texts.literal,
      )
      (encoded,) = encoding.encode([record], tokenizer)
      if isinstance(encoded, drops.RowError):
        raise encoded
      if encoded.literal:
        logging.warning(
          '%s: %s: control tokens, encoded as text.', where, encoded.literal
        )
      found.append(contract.fit(record, encoded, rules).prompt)
    except drops.RowError as error:
      raise ValueError(f'{where}: {error.detail}') from error
  return found
