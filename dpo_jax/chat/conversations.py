"""Messages of a row, as chat templates take them.

A message is {'role', 'content'}, as other trainers write it. Its content is
text, or a list of parts, {'type': 'text', 'text': ...}, which are joined. A
message that calls tools ('tool_calls') needs no content. Forms that templates
do not read are brought into theirs:

  - Fields that are null are absent: Parquet gives every message all fields of
    its file, and every call all arguments.
  - Messages, tools and calls may be stored as JSON text. Such text that can't
    be read, or is in another form, is refused, never trained on.
  - OpenAI's older 'function_call' is one of 'tool_calls'.
  - Reasoning has three names, reasoning_content, reasoning and thinking; the
    template gets it under each of them. (transformers 5.24 fills the first and
    the last.)
  - Flags that say whether a message is trained on (`FLAGS`) are for `trained`.
"""

import json
import re
from collections.abc import Collection
from typing import Any

from dpo_jax.chat import errors

Messages = list[dict[str, Any]]

REASONING = ('reasoning_content', 'thinking', 'reasoning')
# Of OpenAI (weight), LLaMA-Factory (loss_weight), Axolotl and ms-swift.
FLAGS = ('weight', 'loss_weight', 'train', 'training', 'loss')
_ROLES = ('system', 'developer', 'user', 'assistant', 'tool', 'function')
# Conversations that a table has stored as Python prints them.
_STORED = re.compile(
  r"""\s*(array\()?\[?\s*\{.{,500}?(['"])(role|from)\2\s*:""", re.DOTALL
)
_CONTENTS = ('content', 'value', 'tool_calls')


def present(value: Any) -> Any:
  """A JSON value without the fields that are null, at any depth."""
  try:
    return _present(value)
  except RecursionError as e:
    raise errors.RowError('malformed_json', 'it is nested too deeply') from e


def _present(value: Any) -> Any:
  if isinstance(value, dict):
    return {k: _present(v) for k, v in value.items() if v is not None}
  if isinstance(value, list):
    return [_present(each) for each in value]
  return value


def unstored(value: Any) -> Any:
  """The messages of a conversation that is stored as text; else the value.

  RowError for such text that can't be read or is in another form.
  """
  if not isinstance(value, str) or not value.lstrip().startswith(
    ('[', '{', 'a', '"')
  ):
    return value
  try:
    found = json.loads(value)
    if isinstance(found, str):  # Encoded twice.
      found = json.loads(found)
  except (ValueError, RecursionError):
    if _STORED.match(value) and any(name in value for name in _CONTENTS):
      raise errors.RowError(
        'stored_messages',
        f'{errors.show(value)} is a conversation written as text, and no JSON: '
        'store messages as JSON, or as lists',
      ) from None
    return value
  turns = found if isinstance(found, list) else [found]
  if not turns or not all(map(_is_message, turns)):
    return value
  if all(turn.get('role') in _ROLES for turn in turns):
    return present(turns)
  raise errors.RowError(
    'stored_messages',
    f"{errors.show(value)} is a conversation written as text: expected 'role' "
    f"and 'content', roles {', '.join(_ROLES)}; form='sharegpt' reads 'from' "
    "and 'value' in conversations",
  )


def _is_message(value: Any) -> bool:
  return (
    isinstance(value, dict)
    and isinstance(value.get('role', value.get('from')), str)
    and not value.keys().isdisjoint(_CONTENTS)
  )


def checked(value: Any, what: str) -> Messages:
  """Messages whose contents are text; RowError for other values."""
  value = unstored(value)
  if not isinstance(value, list):
    raise errors.unexpected(value, f'{what} is text or messages')
  if not value:
    raise errors.RowError(
      'bad_messages', f'{what} is an empty list of messages'
    )
  return [_message(turn) for turn in value]


def _message(turn: Any) -> dict[str, Any]:
  if isinstance(turn, dict) and isinstance(turn.get('role'), str):
    content = turn.get('content')
    if isinstance(content, list):
      turn = turn | {'content': ''.join(_part(part) for part in content)}
    turn = _with_reasoning(_with_calls(turn))
    if isinstance(turn.get('content'), str):
      return turn
    if content is None and turn.get('tool_calls'):
      return turn
  raise errors.RowError(
    'bad_messages', f'{errors.show(turn)} has no text for role and content'
  )


def _part(part: Any) -> str:
  # LLaMA-Factory has its text in 'value'.
  if isinstance(part, dict) and part.get('type') == 'text':
    text = part.get('text', part.get('value'))
    if isinstance(text, str):
      return text
  raise errors.RowError(
    'bad_messages', f'{errors.show(part)} is no part of a text: type and text'
  )


def _with_reasoning(turn: dict[str, Any]) -> dict[str, Any]:
  """The message with its reasoning under every name that it has."""
  given = {name: turn[name] for name in REASONING if name in turn}
  if not given:
    return turn
  first, *others = given.values()
  if not isinstance(first, str) or any(x != first for x in others):
    names = ' and '.join(given)
    raise errors.unexpected(given, f'{names}: one text', 'bad_messages')
  return turn | dict.fromkeys(REASONING, first)


def _with_calls(turn: dict[str, Any]) -> dict[str, Any]:
  """The message with its calls as a list; without the field if there are none.

  Arguments are as they are given.
  """
  rest = without(turn, ('tool_calls', 'function_call'))
  calls = json_list(turn.get('tool_calls'), 'tool_calls')
  if 'function_call' in turn:
    calls = [{'type': 'function', 'function': turn['function_call']}, *calls]
  calls = [
    call | {'function': from_json(call['function'], 'a function')}
    if isinstance(call, dict) and 'function' in call
    else call
    for call in calls
  ]
  return rest | {'tool_calls': calls} if calls else rest


def json_list(value: Any, what: str) -> list:
  """A list, which it or its elements may be the JSON of; [] for nothing."""
  if value is None or (isinstance(value, str) and not value.strip()):
    return []
  value = from_json(value, what)
  if value is None:
    return []
  if not isinstance(value, list):
    raise errors.unexpected(value, f'{what} are a list')
  return [
    from_json(each, f'one of the {what}')
    if isinstance(each, str) and each.lstrip()[:1] == '{'
    else each
    for each in value
  ]


def from_json(value: Any, what: str) -> Any:
  """A value, or what its JSON text says; RowError for other text."""
  if not isinstance(value, str):
    return value
  try:
    return present(json.loads(value))
  except (ValueError, RecursionError) as e:
    raise errors.RowError('wrong_type', f'{what} are no JSON: {e}') from e


def trained(messages: Messages) -> tuple[list[bool | None], Messages]:
  """Whether each message is to be trained on, and messages without the flags.

  None where a message has no flag. RowError for a flag that is neither 0 nor 1,
  flags that disagree, and one that asks to train on what is no answer.
  """
  out = []
  for place, message in enumerate(messages, start=1):
    flags = {name: message[name] for name in FLAGS if name in message}
    for name, value in flags.items():
      if not isinstance(value, bool | int | float) or value not in (0, 1):
        raise errors.RowError(
          'bad_flag',
          f'{name} of message {place} is {errors.show(value)}; expected 0 or '
          '1: other weights are not supported',
        )
    values = {bool(value) for value in flags.values()}
    if len(values) > 1:
      raise errors.RowError(
        'bad_flag', f'flags of message {place} disagree: {errors.show(flags)}'
      )
    flag = values.pop() if values else None
    if flag and message['role'] != 'assistant':
      raise errors.RowError(
        'bad_flag',
        f'message {place} is of role {message["role"]!r} and asks to be '
        f'trained on ({", ".join(flags)}); only answers are',
      )
    out.append(flag)
  return out, [without(message, FLAGS) for message in messages]


def without(message: dict, names: Collection[str]) -> dict:
  """The message without some of its fields."""
  return {k: v for k, v in message.items() if k not in names}
