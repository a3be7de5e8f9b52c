"""What messages think and say, and what a template writes of it.

A message has its thought as `reasoning_content` (or another name of
conversations.py), or in its content, before '</think>'. A template decides what
becomes of it. Some leave it out of finished turns (DeepSeek-R1 and what was
distilled from it, QwQ), which is meant for turns that others follow. Training
on the last answer would then teach not to think. There, what follows the prompt
is what the model writes at inference: the content as it is given, after what
the prompt has opened of it.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

from dpo_jax.data import drops

_END = '</think>'
# What opens a thought, as the end of a prompt: '<think>', '[THINK]'.
_TAG = re.compile(r'([<\[])(\w+)([>\]])')


def of(message: dict[str, Any]) -> str:
  """The thought of an answer, without the white space around it; '' if none."""
  if message.get('reasoning_content'):
    return message['reasoning_content'].strip()
  before, ended, _ = (message.get('content') or '').partition(_END)
  _, _, thought = before.rpartition('<think>')
  return thought.strip() if ended else ''


def answer(message: dict[str, Any]) -> str:
  """What a message says beside its thought, without white space around it."""
  return (message.get('content') or '').rpartition(_END)[2].strip()


def kept(message: dict[str, Any], text: str) -> bool:
  """Whether the text has the answer's thought, if there is one."""
  said = answer(message)
  # What is thought may be said again.
  before, _, after = text.rpartition(said) if said else (text, '', '')
  return of(message) in before or of(message) in after


def check(message: dict[str, Any], text: str, what: str) -> None:
  """drops.RowError where the template has left a thought out."""
  if not kept(message, text):
    raise drops.RowError(
      'thought_left_out',
      f'the template leaves out what {what} thinks: {of(message)[:30]!r}',
    )


def check_written(messages: Sequence[dict[str, Any]], text: str) -> None:
  """drops.RowError for a message that the template has left out."""
  for place, message in enumerate(messages, start=1):
    said = answer(message)
    as_json = json.dumps(said, ensure_ascii=False)[1:-1]
    if said not in text and as_json not in text:
      raise drops.RowError(
        'message_left_out',
        f'the template does not write what message {place} of these says, of '
        f'role {message["role"]!r}: {said[:60]!r}',
      )


def after(opened: str, message: dict[str, Any]) -> str:
  """What follows a prompt that ends with `opened`, of the last answer.

  drops.RowError where the message does not show it.
  """
  tag = _TAG.fullmatch(opened.strip())
  content = message.get('content') or ''
  if message.get('tool_calls'):
    raise drops.RowError(
      'thought_left_out',
      'the prompt opens a thought that the finished turn does not have, and '
      'the answer calls tools: what follows the prompt is not known',
    )
  if tag and message.get('reasoning_content'):
    close = f'{tag[1]}/{tag[2]}{tag[3]}'
    thought = message['reasoning_content'].strip('\n')
    return f'{thought}\n{close}\n\n{content}'
  if opened and content.startswith(opened):
    return content.removeprefix(opened)
  if tag and content.startswith(tag[0]):
    return content.removeprefix(tag[0]).removeprefix('\n')
  # It goes on from what the prompt has opened, or, where that is closed or
  # nothing, is all that follows.
  goes_on = _END in content and (not opened or '<think>' not in content)
  closed = _END in opened and not of(message)
  if (goes_on or closed) and not message.get('reasoning_content'):
    return content
  if opened:
    raise drops.RowError(
      'thought_expected',
      f'the prompt ends with {opened!r}, and the answer does not begin so: '
      f'{content[:30]!r}. Give the thought before the answer, as '
      f"{opened.strip()!r} in its content or as 'reasoning_content', or use a "
      'template whose prompt opens none',
    )
  raise drops.RowError(
    'thought_left_out',
    f'the template has no place for the thought of the answer: '
    f'{of(message)[:30]!r}. Put it into the content, or take it out',
  )
