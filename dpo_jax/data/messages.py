"""Prompts and completions of a row as text, be they text or messages.

Text is used as it is, or, where `Render.chat` asks for it, as what a user says
and what the assistant answers. Prompts and completions may instead be lists of
messages (conversations.py); they are rendered by the tokenizer's chat template:
see rendering.py. The last message of a completion must be the assistant's.
Earlier messages of a completion either repeat the prompt or continue it from
the assistant's turn, and must be the same for all completions of a row. A text
prompt beside message completions is one user message, and a text completion of
message prompts one answer.

What a row says beside its conversation (`AROUND`) is a part of it: `system`
comes before its messages, the others are variables of the template. Where it
can have no effect the row is refused.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dpo_jax.data import conversations, drops, rendering

Render = rendering.Render
show = conversations.show

AROUND = ('system', 'tools', 'documents', 'chat_template_kwargs')
# What templates are given in other ways.
_RESERVED = ('messages', 'tools', 'documents', 'add_generation_prompt')


class Texts(NamedTuple):
  """What `texts` makes of a row.

  rendered: whether a template wrote it, so that a turn's end ends the answers.
  scored: the [begin, end) that are scored of the only answer; None for all of
  every answer. contents: what the last messages say, if they were rendered.
  literal: of the prompt and of each answer, where control tokens are that
  messages hold; None where no template has written any. unread: what the
  template does not read of the messages and of what is around them.
  """

  prompt: str
  answers: tuple[str, ...]
  rendered: bool = False
  scored: tuple[rendering.Span, ...] | None = None
  contents: tuple[str, ...] | None = None
  literal: tuple[tuple[rendering.Span, ...], ...] | None = None
  unread: tuple[str, ...] = ()


def texts(
  prompt: Any,
  answers: Sequence[Any],
  render: Render | None,
  around: Mapping[str, Any] | None = None,
) -> Texts:
  """The texts of a prompt and the answers to it.

  prompt: text, messages, or None if the answers hold the whole conversation.
  render: None where all of them are text.
  around: what the row has of `AROUND`.
  Raises drops.RowError for what is neither, or does not fit together.
  """
  prompt = conversations.unstored(prompt)
  answers = [conversations.unstored(answer) for answer in answers]
  if isinstance(answers[0], list):
    turns = [conversations.checked(a, 'a completion') for a in answers]
    context = _context(prompt, _before_last(turns))
    found = _rendered(context, [t[-1] for t in turns], render, around or {})
  elif isinstance(prompt, list) or (render and render.chat):
    said = [_answer(answer) for answer in answers]
    context = conversations.checked(_asked_text(prompt), 'a prompt')
    found = _rendered(context, said, render, around or {})
  elif prompt is None:
    raise drops.RowError(
      'missing_field', 'no prompt; an empty one is an empty string'
    )
  else:
    for text in (prompt, *answers):
      _check_text(text)
    _check_alone(around or {})
    found = Texts(prompt, tuple(answers))
  for text in (found.prompt, *found.answers):
    # Legal in JSON, in no encoding; tokenizers raise TypeError.
    if not text.isascii() and any('\ud800' <= c <= '\udfff' for c in text):
      raise drops.RowError('bad_unicode', f'lone surrogate in {show(text)}')
  if not all(found.answers):
    raise drops.RowError('empty_completion', 'a completion is an empty string')
  return found


def question(
  prompt: Any,
  answers: Sequence[Any],
  render: Render,
  around: Mapping[str, Any] | None = None,
) -> Texts:
  """What `texts` makes of a prompt; of answers, those that hold messages count.

  A conversation that no answer ends is the prompt.
  """
  prompt = conversations.unstored(prompt)
  turns = [
    conversations.checked(answer, 'a completion')
    for answer in map(conversations.unstored, answers)
    if isinstance(answer, list)
  ]
  if turns:
    asks = len(turns) == 1 and turns[0][-1]['role'] != 'assistant'
    prompt = _context(prompt, turns[0] if asks else _before_last(turns))
  if isinstance(prompt, str) and not render.chat:
    _check_alone(around or {})
    return Texts(prompt, ())
  context = conversations.checked(_asked_text(prompt), 'a prompt')
  return _rendered(context, [], render, around or {})


def _check_text(text: Any) -> None:
  if not isinstance(text, str):
    raise drops.RowError('wrong_type', f'text was expected, not {show(text)}')


def _check_alone(around: Mapping[str, Any]) -> None:
  """drops.RowError for what belongs to a conversation, beside plain text."""
  for name in AROUND:
    value = around.get(name)
    if name in ('tools', 'documents'):
      value = conversations.json_list(value, name)
    if value:
      raise drops.RowError(
        'not_a_chat',
        f'{name} belongs to a conversation, but prompt and completion are '
        'text: give messages, or set chat=True, which makes a user and an '
        'assistant of them',
      )


def _asked_text(prompt: Any) -> Any:
  """Messages; a text is what a user says."""
  if prompt == '':
    raise drops.RowError(
      'empty_prompt', 'chat=True makes a user say the prompt, which is empty'
    )
  if prompt is None:
    raise drops.RowError('missing_field', 'no prompt')
  if isinstance(prompt, str):
    return [{'role': 'user', 'content': prompt}]
  return prompt


def _answer(text: Any) -> dict[str, Any]:
  _check_text(text)
  return {'role': 'assistant', 'content': text}


def _rendered(
  context: list[dict],
  answers: list[dict],
  render: Render,
  around: Mapping[str, Any],
) -> Texts:
  for answer in answers:
    if not answer.get('content') and not answer.get('tool_calls'):
      raise drops.RowError('empty_completion', 'the last answer is empty')
  variables, unread = _variables(around, render)
  context = _with_system(context, around.get('system'))
  if context[-1]['role'] == 'assistant':
    raise drops.RowError('bad_messages', "the prompt ends with 'assistant'")
  flags, context = conversations.trained(context)
  marked = [conversations.trained([answer]) for answer in answers]
  answers = [answer for _, (answer,) in marked]
  said = tuple(answer.get('content') or '' for answer in answers)
  if render.turns == 'all' and answers:
    flags += marked[0][0]
    found = render.every([*context, *answers], flags, variables)
  else:
    _check_flags(flags, [flag for (flag,), _ in marked])
    found = render.last(context, answers, variables)
  return Texts(
    prompt=found.prompt,
    answers=found.answers,
    rendered=True,
    scored=found.scored,
    contents=said,
    literal=found.literal,
    unread=(*unread, *found.unread),
  )


def _check_flags(context: list[bool | None], last: list[bool | None]) -> None:
  """drops.RowError where messages ask for more or less than the last answer."""
  if False in last:
    raise drops.RowError(
      'not_trained', 'the last answer is marked as one that is not trained on'
    )
  if True in context:
    raise drops.RowError(
      'bad_flag',
      f'message {context.index(True) + 1}, an earlier answer, asks to be '
      "trained on; the last one alone is, but with kind='sft' and turns='all'",
    )


def _variables(
  around: Mapping[str, Any], render: Render
) -> tuple[dict[str, Any], list[str]]:
  """What the template is given beside messages, and what it will not read."""
  lists = {
    name: conversations.json_list(around.get(name), name)
    for name in ('tools', 'documents')
  }
  out = {name: value for name, value in lists.items() if value}
  given = around.get('chat_template_kwargs', {})
  given = conversations.from_json(given, 'chat_template_kwargs')
  if not isinstance(given, dict):
    raise drops.RowError(
      'wrong_type', f'chat_template_kwargs is an object, not {show(given)}'
    )
  for name in _RESERVED:
    if name in given:
      raise drops.RowError(
        'chat_template', f'chat_template_kwargs must not set {name}'
      )
  names = {name: f'chat_template_kwargs.{name}' for name in given}
  names |= {name: name for name in out}
  unread = [shown for n, shown in names.items() if not render.reads(n, out)]
  return given | out, unread


def _with_system(context: list[dict], system: Any) -> list[dict]:
  """The messages after one of the system, if the row has it beside them."""
  if system is None or system == '':
    return context
  if not isinstance(system, str):
    raise drops.RowError('wrong_type', f'system is text, not {show(system)}')
  first = context[0]
  if first['role'] not in ('system', 'developer'):
    return [{'role': 'system', 'content': system}, *context]
  if first.get('content') != system:
    raise drops.RowError(
      'ambiguous',
      f'system is {show(system)}, and the first message {show(first)}',
    )
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
  if prompt is None or (prompt == '' and before):
    if not before:
      raise drops.RowError('missing_field', 'no prompt, and one message only')
    return before
  if isinstance(prompt, str):
    prompt = [{'role': 'user', 'content': prompt}]
    if before[-1:] == prompt:  # Perhaps after a system message.
      return before
  prompt = conversations.checked(prompt, 'a prompt')
  if before[: len(prompt)] == prompt:
    return before
  if before and before[0]['role'] != 'assistant':
    raise drops.RowError(
      'prompt_mismatch',
      f'a completion begins with {show(before[0])}: neither the prompt nor an '
      f'answer to it',
    )
  return prompt + before
