"""Prompts and completions of a row as text, be they text or messages.

Text is used as it is. Prompts and completions may instead be lists of messages,
{'role', 'content'}, as other trainers write them; they are rendered by the
tokenizer's chat template: see rendering.py. The last message of a completion
must be the assistant's. Earlier messages of a completion either repeat the
prompt or continue it from the assistant's turn, and must be the same for all
completions of a row. A text prompt beside message completions is one user
message, and a text completion of message prompts one answer.

A content may be a list of parts, {'type': 'text', 'text': ...}, which are
joined. A message that calls tools ('tool_calls') needs no content. Other fields
that are null are not there: all messages of a Parquet file have all its fields.
"""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from dpo_jax.data import drops, rendering

Render = rendering.Render


class Texts(NamedTuple):
  """What `texts` makes of a row.

  rendered: whether a template wrote it, so that a turn's end ends the answers.
  scored: the [begin, end) that are scored of the only answer; None for all of
  every answer. contents: what the last messages say, if they were rendered.
  """

  prompt: str
  answers: tuple[str, ...]
  rendered: bool = False
  scored: tuple[rendering.Span, ...] | None = None
  contents: tuple[str, ...] | None = None


def texts(
  prompt: Any, answers: Sequence[Any], render: Render, tools: Any = None
) -> Texts:
  """The texts of a prompt and the answers to it.

  prompt: text, messages, or None if the answers hold the whole conversation.
  tools: those that the assistant may call, as a list or its JSON.
  Raises drops.RowError for what is neither, or does not fit together.
  """
  if isinstance(answers[0], list):
    turns = [checked(answer, 'a completion') for answer in answers]
    context = _context(prompt, _before_last(turns))
    found = _rendered(context, [t[-1] for t in turns], render, _tools(tools))
  elif isinstance(prompt, list):
    said = [_answer(answer) for answer in answers]
    context = checked(prompt, 'a prompt')
    found = _rendered(context, said, render, _tools(tools))
  elif prompt is None:
    raise drops.RowError(
      'missing_field', 'no prompt; an empty one is an empty string'
    )
  else:
    for text in (prompt, *answers):
      _check_text(text)
    found = Texts(prompt, tuple(answers))
  for text in (found.prompt, *found.answers):
    # Legal in JSON, in no encoding; tokenizers raise TypeError.
    if not text.isascii() and any('\ud800' <= c <= '\udfff' for c in text):
      raise drops.RowError('bad_unicode', f'lone surrogate in {show(text)}')
  if not all(found.answers):
    raise drops.RowError('empty_completion', 'a completion is an empty string')
  return found


def prompt_text(messages: Any, render: Render) -> str:
  """Messages as text, up to where the answer to them begins."""
  return render.prompt(_asked(checked(messages, 'a prompt')), [])


def show(value: object) -> str:
  """A value as an error shows it: at most 60 characters."""
  text = repr(value)
  return text if len(text) <= 60 else f'{text[:57]}...'


def _check_text(text: Any) -> None:
  if not isinstance(text, str):
    raise drops.RowError('wrong_type', f'text was expected, not {show(text)}')


def _answer(text: Any) -> dict[str, Any]:
  _check_text(text)
  return {'role': 'assistant', 'content': text}


def _rendered(
  context: list[dict], answers: list[dict], render: Render, tools: list
) -> Texts:
  said = tuple(answer.get('content') or '' for answer in answers)
  for answer, content in zip(answers, said):
    if not content and not answer.get('tool_calls'):
      raise drops.RowError('empty_completion', 'the last answer is empty')
  _asked(context)
  if render.turns == 'all':
    (answer,) = answers
    prompt, text, scored = render.every([*context, answer], tools)
    return Texts(prompt, (text,), True, scored, said)
  prompt = render.prompt(context, tools)
  found = tuple(render.last(prompt, [*context, a], tools) for a in answers)
  return Texts(prompt, found, True, None, said)


def _asked(context: list[dict]) -> list[dict]:
  if context[-1]['role'] == 'assistant':
    raise drops.RowError('bad_messages', "the prompt ends with 'assistant'")
  return context


def _before_last(turns: list[list[dict]]) -> list[dict]:
  """The messages before the last one, which all completions share."""
  for turn in turns:
    if turn[-1]['role'] != 'assistant':
      raise drops.RowError(
        'bad_messages',
        f"a completion ends with {turn[-1]['role']!r}, not 'assistant'",
      )
    if turn[:-1] != turns[0][:-1]:
      raise drops.RowError(
        'different_context', 'completions differ before their last message'
      )
  return turns[0][:-1]


def _context(prompt: Any, before: list[dict]) -> list[dict]:
  """The prompt, and what comes between it and the last message."""
  if prompt is None:
    if not before:
      raise drops.RowError('missing_field', 'no prompt, and one message only')
    return before
  if isinstance(prompt, str):
    prompt = [{'role': 'user', 'content': prompt}]
    if before[-1:] == prompt:  # Perhaps after a system message.
      return before
  prompt = checked(prompt, 'a prompt')
  if before[: len(prompt)] == prompt:
    return before
  if before and before[0]['role'] != 'assistant':
    raise drops.RowError(
      'prompt_mismatch',
      f'a completion begins with {show(before[0])}: neither the prompt nor an '
      f'answer to it',
    )
  return prompt + before


def checked(value: Any, what: str) -> list[dict]:
  """Messages whose contents are text; drops.RowError if they are none."""
  if not isinstance(value, list):
    raise drops.RowError(
      'wrong_type', f'{what} is text or messages, not {show(value)}'
    )
  if not value:
    raise drops.RowError('bad_messages', f'{what} is an empty list of messages')
  return [_message(turn) for turn in value]


def _message(turn: Any) -> dict[str, Any]:
  if isinstance(turn, dict) and isinstance(turn.get('role'), str):
    content = turn.get('content')
    turn = {k: v for k, v in turn.items() if v is not None or k == 'content'}
    if isinstance(content, list):
      content = ''.join(_part(part) for part in content)
      turn = turn | {'content': content}
    if isinstance(content, str):
      return turn
    if content is None and turn.get('tool_calls'):
      return turn
  raise drops.RowError(
    'bad_messages', f'{show(turn)} has no text for role and content'
  )


def _part(part: Any) -> str:
  if isinstance(part, dict) and part.get('type') == 'text':
    text = part.get('text')
    if isinstance(text, str):
      return text
  raise drops.RowError(
    'bad_messages', f'{show(part)} is no part of a text: type and text'
  )


def _tools(value: Any) -> list:
  if isinstance(value, str):
    try:
      value = json.loads(value)
    except ValueError as e:
      raise drops.RowError('wrong_type', f'tools are no JSON: {e}') from e
  if value is None or isinstance(value, list):
    return value or []
  raise drops.RowError('wrong_type', f'tools are a list, not {show(value)}')
