"""Prompts to sample from, as training reads and encodes them."""

import collections
import sys
import types
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from absl import logging

from dpo_jax import assets
from dpo_jax.chat import errors, rendering, row_texts
from dpo_jax.data import preferences, records, token_rules, tokenise
from dpo_jax.data.sources import files, row_formats


class Prompt(NamedTuple):
  """Text or messages, their place, and the fields around them.

  answers: of its row; they may hold a part of the conversation.
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
  found = assets.find_files(file, (*row_formats.SUFFIXES, '.txt'))
  prompts, unread = [], collections.Counter()
  for row in files.reader(found)():
    try:
      if isinstance(row, errors.RowError):
        raise row
      asked = preferences.prompt_of_row(row.value)
    except errors.RowError as error:
      at = row.row if isinstance(row, errors.RowError) else row.line
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
  """Ids by the rules of training, token_rules.py; ValueError names the place.

  chat_format: whether text is a user's message rather than text to continue.
  """
  rules = token_rules.resolve(
    tokenizer, max_length=sys.maxsize, truncation='drop'
  )
  render = rendering.Render(tokenizer, chat=chat_format)
  found = []
  for content, where, around, answers in prompts:
    try:
      texts = row_texts.read_prompt(content, answers, render, around)
      prompt = records.Record(
        texts.prompt, (), (), rendered=texts.rendered, literal=texts.literal
      )
      (encoded,) = tokenise.encode([prompt], tokenizer)
      if isinstance(encoded, errors.RowError):
        raise encoded
      if encoded.literal:
        logging.warning(
          '%s: %s: control tokens, encoded as text.', where, encoded.literal
        )
      found.append(token_rules.rooted(encoded.prompt, rules))
    except errors.RowError as error:
      raise ValueError(f'{where}: {error.detail}') from error
  return found
