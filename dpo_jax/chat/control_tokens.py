"""Control tokens in messages, kept apart from those of the template.

The text of a user or a tool must neither end its turn nor forge another. Before
a template renders a conversation, each control token in such a message is put
between two characters that no text has; afterwards they tell which tokens of
the rendered text are to be encoded as text.
"""

import json
import re
from typing import Any

from dpo_jax.chat import errors

Span = tuple[int, int]

# Two of Unicode's noncharacters, "for internal use".
_OPEN, _CLOSE = '\ufdd0', '\ufdd1'
_MARKED = re.compile(f'{_OPEN}([^{_OPEN}{_CLOSE}]*){_CLOSE}')
_ONE = re.compile(f'[{_OPEN}{_CLOSE}]')


def mark(value: Any, tokens: re.Pattern) -> Any:
  """A message, or another value, with the control tokens in it marked.

  Roles and the names of fields are left as they are.
  """
  if isinstance(value, dict):
    return {
      name: each if name == 'role' else mark(each, tokens)
      for name, each in value.items()
    }
  if isinstance(value, list):
    return [mark(each, tokens) for each in value]
  if not isinstance(value, str):
    return value
  return tokens.sub(rf'{_OPEN}\g<0>{_CLOSE}', value)


def check(value: Any) -> None:
  """RowError for a value that holds a marking character, at any depth."""
  if isinstance(value, dict):
    value = list(value.values())
  if isinstance(value, list):
    for each in value:
      check(each)
  elif isinstance(value, str) and _ONE.search(value):
    raise errors.RowError('bad_unicode', 'a message holds U+FDD0 or U+FDD1')


def unmark(text: str) -> tuple[str, tuple[Span, ...]]:
  """The text without marks, and where in it the tokens are that had them.

  RowError where the template has written a mark in another way.
  """
  for mark in (_OPEN, _CLOSE):
    if json.dumps(mark)[1:-1] in text:
      raise errors.RowError(
        'control_tokens',
        'a message holds control tokens, and the template escapes it',
      )
  spans = tuple(
    (plain(text, m.start()), plain(text, m.end()))
    for m in _MARKED.finditer(text)
  )
  return _ONE.sub('', text), spans


def plain(text: str, place: int) -> int:
  """The place in the text without marks of a place in the text with them."""
  return place - len(_ONE.findall(text, 0, place))
