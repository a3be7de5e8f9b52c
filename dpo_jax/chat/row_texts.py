"""Prompts and answers of a row as text, given as text or as messages.

Text is used as it is, or, where `Render.chat` asks for it, as what a user says
and what the assistant answers. Prompts and answers may instead be lists of
messages (conversations.py); the tokenizer's chat template renders them: see
rendering.py. The last message of an answer must be the assistant's. Earlier
messages of an answer either repeat the prompt or continue it from the
assistant's turn, and must be the same for all answers of a row. A text prompt
with answers of messages is one user message, and a text answer to a prompt of
messages one assistant message.

Fields beside the conversation (`AROUND`) are parts of it: `system` comes before
its messages, the others are variables of the template. Where a field can have
no effect the row is refused.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from dpo_jax.chat import conversations, errors, rendering

AROUND = ('system', 'tools', 'documents', 'chat_template_kwargs')
# Templates get these in other ways.
_RESERVED = ('messages', 'tools', 'documents', 'add_generation_prompt')


def read(
  prompt: Any,
  answers: Sequence[Any],
  render: rendering.Render | None,
  around: Mapping[str, Any] | None = None,
) -> rendering.Texts:
  """The texts of a prompt and the answers to it.

  prompt: text, messages, or None if the answers hold the whole conversation.
  render: None where all of them are text. around: the row's fields of `AROUND`.
  Raises RowError for other values, and for those that do not fit together.
  """
  around = around or {}
  prompt = conversations.unstored(prompt)
  answers = [conversations.unstored(answer) for answer in answers]
  if isinstance(answers[0], list):
    turns = [conversations.checked(a, 'a completion') for a in answers]
    context = _context(prompt, _before_last(turns))
    found = _rendered(context, [t[-1] for t in turns], render, around)
  elif isinstance(prompt, list) or (render and render.chat):
    said = [
      {'role': 'assistant', 'content': errors.check_text(a, 'a completion')}
      for a in answers
    ]
    found = _rendered(_asked(prompt), said, render, around)
  elif prompt is None:
    raise errors.RowError(
      'missing_field', 'no prompt; an empty one is an empty string'
    )
  else:
    for text in (prompt, *answers):
      errors.check_text(text, 'a prompt or completion')
    _check_no_chat(around)
    found = rendering.Texts(prompt, tuple(answers))
  _check_unicode(found)
  if not all(found.answers):
    raise errors.RowError('empty_completion', 'a completion is an empty string')
  return found


def read_usable(
  prompt: Any,
  answers: Sequence[Any],
  render: rendering.Render | None,
  around: Mapping[str, Any] | None = None,
) -> tuple[rendering.Texts, dict[int, errors.RowError]]:
  """The texts, and the faults of answers that can't be used, by place.

  The text of such an answer is ''. Raises RowError if no answer can be used, or
  if answers can't be used together.
  """
  try:
    return read(prompt, answers, render, around), {}
  except errors.RowError:
    faults = {}
    for place, answer in enumerate(answers):
      try:
        read(prompt, [answer], render, around)
      except errors.RowError as error:
        faults[place] = error
    good = [place for place in range(len(answers)) if place not in faults]
    if not faults or not good:
      raise
    texts = read(prompt, [answers[place] for place in good], render, around)

  def spread(values, nothing):
    known = dict(zip(good, values))
    return tuple(known.get(place, nothing) for place in range(len(answers)))

  literal = texts.literal
  return texts._replace(
    answers=spread(texts.answers, ''),
    contents=texts.contents and spread(texts.contents, ''),
    literal=literal and (literal[0], *spread(literal[1:], ())),
  ), faults


def read_prompt(
  prompt: Any,
  answers: Sequence[Any],
  render: rendering.Render,
  around: Mapping[str, Any] | None = None,
) -> rendering.Texts:
  """The text of a prompt alone.

  Answers of messages may hold a part of the prompt. If the only one does not
  end with an answer, all of it is the prompt.
  """
  around = around or {}
  prompt = conversations.unstored(prompt)
  turns = [
    conversations.checked(answer, 'a completion')
    for answer in map(conversations.unstored, answers)
    if isinstance(answer, list)
  ]
  if turns:
    unanswered = len(turns) == 1 and turns[0][-1]['role'] != 'assistant'
    prompt = _context(prompt, turns[0] if unanswered else _before_last(turns))
  if isinstance(prompt, str) and not render.chat:
    _check_no_chat(around)
    found = rendering.Texts(prompt, ())
  else:
    found = _rendered(_asked(prompt), [], render, around)
  _check_unicode(found)
  return found


def _check_unicode(found: rendering.Texts) -> None:
  """RowError for half a surrogate pair: legal in JSON, in no encoding."""
  for text in (found.prompt, *found.answers):
    if not text.isascii() and any('\ud800' <= c <= '\udfff' for c in text):
      raise errors.RowError(
        'bad_unicode', f'lone surrogate in {errors.show(text)}'
      )


def _check_no_chat(around: Mapping[str, Any]) -> None:
  """RowError for fields of a conversation, beside plain text."""
  for name in AROUND:
    value = around.get(name)
    if name in ('tools', 'documents'):
      value = conversations.json_list(value, name)
    if value:
      raise errors.RowError(
        'not_a_chat',
        f'{name} belongs to a conversation, but prompt and completion are '
        'text: give messages, or set chat=True, which makes a user and an '
        'assistant of them',
      )


def _asked(prompt: Any) -> conversations.Messages:
  """The messages of a prompt; text is what a user says."""
  if prompt == '':
    raise errors.RowError(
      'empty_prompt', 'chat=True makes a user say the prompt, which is empty'
    )
  if prompt is None:
    raise errors.RowError('missing_field', 'no prompt')
  if isinstance(prompt, str):
    prompt = [{'role': 'user', 'content': prompt}]
  return conversations.checked(prompt, 'a prompt')


def _rendered(
  context: list[dict],
  answers: list[dict],
  render: rendering.Render,
  around: Mapping[str, Any],
) -> rendering.Texts:
  for answer in answers:
    if not answer.get('content') and not answer.get('tool_calls'):
      raise errors.RowError('empty_completion', 'the last answer is empty')
  variables, unread = _variables(around, render)
  context = _with_system(context, around.get('system'))
  if context[-1]['role'] == 'assistant':
    raise errors.RowError('bad_messages', "the prompt ends with 'assistant'")
  flags, context = conversations.trained(context)
  last_flags, answers = conversations.trained(answers)
  if render.turns == 'all' and answers:
    flags += last_flags[:1]
    found = render.every([*context, *answers], flags, variables)
  else:
    _check_flags(flags, last_flags)
    found = render.last(context, answers, variables)
  return found._replace(
    contents=tuple(answer.get('content') or '' for answer in answers),
    unread=(*unread, *found.unread),
  )


def _check_flags(context: list[bool | None], last: list[bool | None]) -> None:
  """RowError where flags ask for more or less than the last answer."""
  if False in last:
    raise errors.RowError(
      'not_trained', 'the last answer is marked as one that is not trained on'
    )
  if True in context:
    raise errors.RowError(
      'bad_flag',
      f'message {context.index(True) + 1}, an earlier answer, asks to be '
      "trained on; the last one alone is, but with kind='sft' and turns='all'",
    )


def _variables(
  around: Mapping[str, Any], render: rendering.Render
) -> tuple[dict[str, Any], list[str]]:
  """Variables of the template, and the names of those that it does not read."""
  lists = {
    name: conversations.json_list(around.get(name), name)
    for name in ('tools', 'documents')
  }
  out = {name: value for name, value in lists.items() if value}
  given = around.get('chat_template_kwargs', {})
  given = conversations.from_json(given, 'chat_template_kwargs')
  if not isinstance(given, dict):
    raise errors.unexpected(given, 'chat_template_kwargs is an object')
  for name in _RESERVED:
    if name in given:
      raise errors.RowError(
        'chat_template', f'chat_template_kwargs must not set {name}'
      )
  names = {name: f'chat_template_kwargs.{name}' for name in given}
  names |= {name: name for name in out}
  unread = [shown for n, shown in names.items() if not render.reads(n, out)]
  return given | out, unread


def _with_system(context: list[dict], system: Any) -> list[dict]:
  """The messages after the row's system message, if it has one beside them."""
  if system is None or system == '':
    return context
  if not isinstance(system, str):
    raise errors.unexpected(system, 'system is text')
  first = context[0]
  if first['role'] not in ('system', 'developer'):
    return [{'role': 'system', 'content': system}, *context]
  if first.get('content') != system:
    raise errors.RowError(
      'ambiguous',
      f'system is {errors.show(system)}, and the first message '
      f'{errors.show(first)}',
    )
  return context


def _before_last(turns: list[list[dict]]) -> list[dict]:
  """The messages before the last one, which all answers share."""
  for turn in turns:
    if turn[-1]['role'] != 'assistant':
      raise errors.RowError(
        'bad_messages',
        f"a completion ends with {turn[-1]['role']!r}, not 'assistant'",
      )
    if turn[:-1] != turns[0][:-1]:
      raise errors.RowError(
        'different_context', 'completions differ before their last message'
      )
  return turns[0][:-1]


def _context(prompt: Any, before: list[dict]) -> list[dict]:
  """The prompt, and the messages between it and the last message."""
  if prompt is None or (prompt == '' and before):
    if not before:
      raise errors.RowError('missing_field', 'no prompt, and one message only')
    return before
  if isinstance(prompt, str):
    prompt = [{'role': 'user', 'content': prompt}]
    if before[-1:] == prompt:  # Perhaps after a system message.
      return before
  prompt = conversations.checked(prompt, 'a prompt')
  if before[: len(prompt)] == prompt:
    return before
  if before and before[0]['role'] != 'assistant':
    raise errors.RowError(
      'prompt_mismatch',
      f'a completion begins with {errors.show(before[0])}: neither the prompt '
      'nor an answer to it',
    )
  return prompt + before
