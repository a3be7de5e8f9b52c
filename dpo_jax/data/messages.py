"""Prompts and completions of a row as text, be they text or messages.

Text is used as it is. Prompts and completions may instead be lists of messages,
{'role', 'content'}, as other trainers write them. The prompt is then rendered
by the tokenizer's chat template up to where the assistant begins, and the
completion is the content of the last message, which must be the assistant's:
only this last answer is scored. Earlier messages of a completion either repeat
the prompt or continue it from the assistant's turn, and must be the same for
all completions of a row. A text prompt beside message completions is one user
message.
"""

from collections.abc import Callable, Sequence
from typing import Any

from dpo_jax.data import drops

Render = Callable[[list[dict[str, Any]]], str]


def texts(
  prompt: Any, answers: Sequence[Any], render: Render
) -> tuple[str, tuple[str, ...], bool]:
  """(prompt text, completion texts, whether the prompt was rendered).

  prompt: text, messages, or None if the answers hold the whole conversation.
  render: messages -> text, up to where the assistant's answer begins.
  Raises drops.RowError for what is neither, or does not fit together.
  """
  if isinstance(answers[0], list):
    turns = [_checked(answer, 'a completion') for answer in answers]
    prompt = _context(prompt, _before_last(turns))
    answers = [turn[-1]['content'] for turn in turns]
  elif prompt is None:
    raise drops.RowError(
      'missing_field', 'no prompt; an empty one is an empty string'
    )
  rendered = not isinstance(prompt, str)
  if rendered:
    prompt = _rendered(_checked(prompt, 'a prompt'), render)
  for text in (prompt, *answers):
    if not isinstance(text, str):
      raise drops.RowError('wrong_type', f'text was expected, not {show(text)}')
    # Legal in JSON, in no encoding; tokenizers raise TypeError.
    if not text.isascii() and any('\ud800' <= c <= '\udfff' for c in text):
      raise drops.RowError('bad_unicode', f'lone surrogate in {show(text)}')
  if not all(answers):
    raise drops.RowError('empty_completion', 'a completion is an empty string')
  return prompt, tuple(answers), rendered


def show(value: object) -> str:
  """A value as an error shows it: at most 60 characters."""
  text = repr(value)
  return text if len(text) <= 60 else f'{text[:57]}...'


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
  prompt = _checked(prompt, 'a prompt')
  if before[: len(prompt)] == prompt:
    return before
  if before and before[0]['role'] != 'assistant':
    raise drops.RowError(
      'prompt_mismatch',
      f'a completion begins with {show(before[0])}: neither the prompt nor an '
      f'answer to it',
    )
  return prompt + before


def _rendered(prompt: list[dict], render: Render) -> str:
  if prompt[-1]['role'] == 'assistant':
    raise drops.RowError('bad_messages', "the prompt ends with 'assistant'")
  try:
    return render(prompt)
  except ValueError as e:
    raise drops.RowError('chat_template', str(e)) from e


def _checked(value: Any, what: str) -> list[dict]:
  if not isinstance(value, list):
    raise drops.RowError(
      'wrong_type', f'{what} is text or messages, not {show(value)}'
    )
  if not value:
    raise drops.RowError('bad_messages', f'{what} is an empty list of messages')
  for turn in value:
    if not isinstance(turn, dict) or not all(
      isinstance(turn.get(name), str) for name in ('role', 'content')
    ):
      raise drops.RowError(
        'bad_messages', f'{show(turn)} has no text for role and content'
      )
  return value
