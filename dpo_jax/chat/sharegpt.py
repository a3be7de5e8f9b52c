"""Messages and tools of ShareGPT's format, as chat templates take them."""

from typing import Any

from dpo_jax.chat import conversations, errors

_ROLES = {
  'human': 'user',
  'user': 'user',
  'gpt': 'assistant',
  'chatgpt': 'assistant',
  'assistant': 'assistant',
  'model': 'assistant',
  'system': 'system',
  'function_call': 'assistant',
  'observation': 'tool',
  'tool': 'tool',
}


def message(turn: Any) -> dict:
  """{'role', 'content', ...} of {'from', 'value', ...}; RowError if it isn't.

  The value of a function_call is one call, or several, as JSON text.
  """
  role = turn.get('from') if isinstance(turn, dict) else None
  if (
    not isinstance(role, str)
    or role not in _ROLES
    or not isinstance(turn.get('value'), str)
  ):
    raise errors.RowError(
      'bad_messages',
      f'{errors.show(turn)} has no text as value, or not one of '
      f'{", ".join(_ROLES)} as from',
    )
  out = conversations.without(turn, ('from', 'value'))
  out |= {'role': _ROLES[role], 'content': turn['value']}
  if role == 'function_call':
    calls = conversations.from_json(turn['value'], 'a function_call')
    calls = calls if isinstance(calls, list) else [calls]
    calls = [{'type': 'function', 'function': call} for call in calls]
    out |= {'content': '', 'tool_calls': calls}
  return out


def tool(value: Any) -> Any:
  """A tool as templates know it: a function by its name and parameters."""
  if isinstance(value, dict) and 'name' in value and 'function' not in value:
    return {'type': 'function', 'function': value}
  return value
