"""Forms that rows have: records.py's own, and those of other projects.

  records   the shapes of records.py
  alpaca    'instruction', with its 'input' on the next line (github.com/
            tatsu-lab/stanford_alpaca; for more than instructions, as
            LLaMA-Factory has them) and 'output', or 'chosen' and 'rejected'.
            'history' holds earlier [instruction, output], 'system' what comes
            before all. The prompt is text, or messages where there are earlier
            turns.
  sharegpt  'conversations' of {'from', 'value'}: human, gpt, system,
            function_call, observation, ...; 'chosen' and 'rejected' are such a
            message, or text, and answer the conversation. Without them its
            last message is the answer. Calls and 'tools' are JSON text.

'label' beside them is that of unpaired methods. Fields that a form does not
know are reported.
"""

from collections.abc import Callable, Mapping
from typing import Any

from dpo_jax.data import conversations, drops, judgements, messages, rows

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
_OUTPUTS = ('chosen', 'rejected', 'label')


def _alpaca(row: Any) -> dict:
  names = ('instruction', 'input', 'output', 'history')
  asked, rest = _dealt(row, names)
  parts = [
    rows.as_text(asked[n], n) for n in names[:2] if asked.get(n, '') != ''
  ]
  if not parts:
    raise drops.RowError('missing_field', 'neither instruction nor input')
  prompt = '\n'.join(parts)
  if asked.get('history'):
    prompt = [*_history(asked['history']), _turn('user', prompt)]
  if 'output' in asked:
    rest['completion'] = asked['output']
  return rest | {'prompt': prompt}


def _history(value: Any) -> list[dict]:
  if not isinstance(value, list) or not all(
    isinstance(turn, list) and len(turn) == 2 for turn in value
  ):
    raise drops.RowError(
      'wrong_type',
      f'history is a list of [instruction, output], not {messages.show(value)}',
    )
  return [
    _turn(role, rows.as_text(text, 'history'))
    for turn in value
    for role, text in zip(('user', 'assistant'), turn)
  ]


def _sharegpt(row: Any) -> dict:
  asked, rest = _dealt(row, ('conversations', 'tools'))
  turns = rows.field_of(row, 'conversations')
  if isinstance(turns, str):
    turns = conversations.from_json(turns, 'conversations')
  if not isinstance(turns, list):
    raise drops.RowError(
      'wrong_type', f'conversations is a list, not {messages.show(turns)}'
    )
  name = 'prompt' if 'chosen' in rest else 'messages'
  rest[name] = [_message(turn) for turn in turns]
  for answer in {'chosen', 'rejected'} & rest.keys():
    if isinstance(rest[answer], dict):
      rest[answer] = [_message(rest[answer])]
  tools = conversations.json_list(asked.get('tools'), 'tools')
  return rest | {'tools': [_tool(tool) for tool in tools]}


def _message(turn: Any) -> dict:
  role = turn.get('from') if isinstance(turn, dict) else None
  if (
    not isinstance(role, str)
    or role not in _ROLES
    or not isinstance(turn.get('value'), str)
  ):
    raise drops.RowError(
      'bad_messages',
      f'{messages.show(turn)} has no text as value, or not one of '
      f'{", ".join(_ROLES)} as from',
    )
  rest = {k: v for k, v in turn.items() if k not in ('from', 'value')}
  if role != 'function_call':
    return rest | _turn(_ROLES[role], turn['value'])
  calls = conversations.from_json(turn['value'], 'a function_call')
  calls = calls if isinstance(calls, list) else [calls]
  return rest | {
    'role': 'assistant',
    'content': '',
    'tool_calls': [{'type': 'function', 'function': call} for call in calls],
  }


def _tool(tool: Any) -> Any:
  """A tool as templates know it: a function by its name and parameters."""
  if isinstance(tool, dict) and 'name' in tool and 'function' not in tool:
    return {'type': 'function', 'function': tool}
  return tool


def _dealt(row: Any, names: tuple[str, ...]) -> tuple[dict, dict]:
  """The fields of these names, and others; drops.RowError for no object.

  The others are without those of records.py that a form makes itself.
  """
  if not isinstance(row, dict):
    rows.field_of(row, names[0])
  given = conversations.present(row)
  asked = {k: v for k, v in given.items() if k in names}
  own = ('prompt', 'completion', 'messages')
  rest = {k: v for k, v in given.items() if k not in (*names, *own)}
  return asked, rest


def _turn(role: str, text: str) -> dict[str, str]:
  return {'role': role, 'content': text}


_FIELDS = dict.fromkeys(
  [
    *(name for fields, _ in judgements.SHAPES.values() for name in fields),
    *messages.AROUND,
  ]
)
# Name -> the fields that are read, and a row in a shape of records.py.
FORMS: Mapping[str, tuple[tuple[str, ...], Callable[[Any], Any]]] = {
  'records': (tuple(_FIELDS), lambda row: row),
  'alpaca': (
    (
      *('instruction', 'input', 'output', 'history'),
      *_OUTPUTS,
      *messages.AROUND,
    ),
    _alpaca,
  ),
  'sharegpt': (('conversations', *_OUTPUTS, *messages.AROUND), _sharegpt),
}
