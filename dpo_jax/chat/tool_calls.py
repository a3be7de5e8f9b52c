"""Calls of tools in messages: arguments as a template reads them.

{'tool_calls': [{'type': 'function', 'function': {'name', 'arguments'}}, ...]},
arguments being an object or, as OpenAI has them, its JSON text. Templates are
made for one or for both: most write an object as JSON, and a text as a quoted
JSON string; some insert the text as it is; some write objects in a form of
their own, or refuse one of the two.
"""

import json
from collections.abc import Callable
from typing import Any

from dpo_jax.chat import errors

Messages = list[dict[str, Any]]


def as_read(messages: Messages, apply: Callable[[Messages], str]) -> Messages:
  """Messages with arguments that are text decoded, if the template needs that.

  Text stays where the template inserts it as it would write the object. apply:
  messages -> text; RowError where the template refuses. RowError for text that
  is to be decoded and is no JSON.
  """
  texts = [x for message in messages for x in _texts(message)]
  if not texts:
    return messages
  try:
    written = apply(messages)
  except errors.RowError:
    return [_with_objects(message) for message in messages]
  quoted = [y for x in texts for y in _as_json(x)]
  if any(y in written for y in quoted) or any(x not in written for x in texts):
    return [_with_objects(message) for message in messages]
  try:
    objects = [_with_objects(message) for message in messages]
    written = apply(objects)
  except errors.RowError:
    return messages
  given = [f['arguments'] for message in objects for f in _functions(message)]
  plain = all(any(y in written for y in (*_as_json(x), str(x))) for x in given)
  return messages if plain else objects


def _functions(message: dict[str, Any]) -> list[dict[str, Any]]:
  """The functions that a message calls with arguments."""
  found = [
    call.get('function', call)
    for call in message.get('tool_calls') or []
    if isinstance(call, dict)
  ]
  return [f for f in found if isinstance(f, dict) and 'arguments' in f]


def _texts(message: dict[str, Any]) -> list[str]:
  found = [f['arguments'] for f in _functions(message)]
  return [x for x in found if isinstance(x, str)]


def _as_json(value: Any) -> tuple[str, ...]:
  """A value as templates write JSON."""
  return tuple(
    json.dumps(value, ensure_ascii=ascii, separators=separators)
    for ascii in (True, False)
    for separators in (None, (',', ':'))
  )


def _with_objects(message: dict[str, Any]) -> dict[str, Any]:
  """The message with the arguments of its calls decoded once."""
  if not _texts(message):
    return message
  calls = list(map(_decoded, message['tool_calls']))
  return message | {'tool_calls': calls}


def _decoded(call: Any) -> Any:
  if not isinstance(call, dict):
    return call
  if 'function' in call:
    return call | {'function': _decoded(call['function'])}
  if not isinstance(call.get('arguments'), str):
    return call
  try:
    return call | {'arguments': json.loads(call['arguments'])}
  except (ValueError, RecursionError) as e:
    raise errors.RowError(
      'bad_arguments',
      f'arguments of a call are no JSON, which the template writes: {e}',
    ) from e
