"""The reasoning of messages, and whether a template writes it.

A message has its reasoning as `reasoning_content` (or another name of
conversations.py), or in its content, before '</think>'. Some templates leave it
out of finished turns (DeepSeek-R1 and what was distilled from it, QwQ), which
is meant for turns that others follow. Training on the last answer would then
teach not to reason. There, the completion is what the model writes at
inference: the content as it is given, after the part of it that ends the
prompt.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

from dpo_jax.chat import errors

_END = '</think>'
# What opens reasoning, at the end of a prompt: '<think>', '[THINK]'.
_TAG = re.compile(r'([<\[])(\w+)([>\]])')


def of(message: dict[str, Any]) -> str:
  """The reasoning of an answer, without the space around it; '' if none."""
  if message.get('reasoning_content'):
    return message['reasoning_content'].strip()
  before, ended, _ = (message.get('content') or '').partition(_END)
  return before.rpartition('<think>')[2].strip() if ended else ''


def answer(message: dict[str, Any]) -> str:
  """The content without its reasoning and the white space around it."""
  return (message.get('content') or '').rpartition(_END)[2].strip()


def kept(message: dict[str, Any], text: str) -> bool:
  """Whether the text has the reasoning of the message, if there is any."""
  said = answer(message)
  # The answer may repeat the reasoning.
  before, _, after = text.rpartition(said) if said else (text, '', '')
  return of(message) in before or of(message) in after


def check(message: dict[str, Any], text: str, what: str) -> None:
  """RowError where the template has left the reasoning out."""
  if not kept(message, text):
    raise errors.RowError(
      'thought_left_out',
      f'the template leaves out what {what} thinks: {of(message)[:30]!r}',
    )


def check_written(messages: Sequence[dict[str, Any]], text: str) -> None:
  """RowError for a message that the template has left out."""
  for place, message in enumerate(messages, start=1):
    said = answer(message)
    as_json = json.dumps(said, ensure_ascii=False)[1:-1]
    if said not in text and as_json not in text:
      raise errors.RowError(
        'message_left_out',
        f'the template does not write what message {place} of these says, of '
        f'role {message["role"]!r}: {said[:60]!r}',
      )


def after(opened: str, message: dict[str, Any]) -> str:
  """The last answer after a prompt that ends with `opened`.

  RowError where the message does not show how it goes on.
  """
  tag = _TAG.fullmatch(opened.strip())
  content = message.get('content') or ''
  if message.get('tool_calls'):
    raise errors.RowError(
      'thought_left_out',
      'the prompt opens reasoning that the finished turn does not have, and '
      'the answer calls tools: what follows the prompt is not known',
    )
  if tag and message.get('reasoning_content'):
    close = f'{tag[1]}/{tag[2]}{tag[3]}'
    opening = message['reasoning_content'].strip('\n')
    return f'{opening}\n{close}\n\n{content}'
  if opened and content.startswith(opened):
    return content.removeprefix(opened)
  if tag and content.startswith(tag[0]):
    return content.removeprefix(tag[0]).removeprefix('\n')
  # The content continues what the prompt has opened; or all of it follows,
  # where that is closed or empty.
  goes_on = _END in content and (not opened or '<think>' not in content)
  closed = _END in opened and not of(message)
  if (goes_on or closed) and not message.get('reasoning_content'):
    return content
  if opened:
    raise errors.RowError(
      'thought_expected',
      f'the prompt ends with {opened!r}, and the answer does not begin so: '
      f'{content[:30]!r}. Give the reasoning before the answer, as '
      f"{opened.strip()!r} in its content or as 'reasoning_content', or use a "
      'template whose prompt opens none',
    )
  raise errors.RowError(
    'thought_left_out',
    f'the template has no place for the reasoning of the answer: '
    f'{of(message)[:30]!r}. Put it into the content, or take it out',
  )
