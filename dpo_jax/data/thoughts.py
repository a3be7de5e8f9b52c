"""Thoughts of answers: what a reasoning model writes before it answers.

A message has its thought as `reasoning_content` (or another name of
conversations.py), or in its content, before '</think>'. A template decides what
becomes of it. Some leave it out of finished turns (DeepSeek-R1 and what was
distilled from it, QwQ), which is meant for turns that others follow. Training
on the last answer would then teach not to think. There, what follows the prompt
is what the model writes at inference: the content as it is given, after what
the prompt has opened of it.
"""

import re
from typing import Any

from dpo_jax.data import drops

# Stands for an answer without a thought.
PROBE = 'Quartz glyph'

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


def kept(message: dict[str, Any], text: str) -> bool:
  """Whether the text has the answer's thought, if there is one."""
  answer = (message.get('content') or '').rpartition(_END)[2].strip()
  # What is thought may be said again.
  before, _, after = text.rpartition(answer) if answer else (text, '', '')
  return of(message) in before or of(message) in after


def check(message: dict[str, Any], text: str, what: str) -> None:
  """drops.RowError where the template has left a thought out."""
  if not kept(message, text):
    raise drops.RowError(
      'thought_left_out',
      f'the template leaves out what {what} thinks: {of(message)[:30]!r}',
    )


def after(opened: str, message: dict[str, Any]) -> str:
  """What follows a prompt that ends with `opened`, of the last answer.

  drops.RowError where the message does not show it.
  """
  tag = _TAG.fullmatch(opened.strip())
  content = message.get('content') or ''
  if message.get('tool_calls'):
    check(message, '', 'an answer that calls tools')
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
