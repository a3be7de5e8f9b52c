"""Conversations as text, by the chat template of a tokenizer.

turns='last': the last answer is scored. The prompt is what the template writes
up to where that answer begins; the completion is what it writes of the last
message, up to the token that ends a turn. So a template that trims an answer,
or puts something before it, does so in training too. If it leaves out the
reasoning of an answer, reasoning.py says what follows the prompt.

turns='all': every answer is scored, with the token that ends it, except those
that are flagged otherwise. The completion goes from the first answer to the
last; the other messages in it are not scored. The template's {% generation %}
blocks say where the answers lie, if it has them. Otherwise every conversation
is rendered up to each answer and with it: the answer is the difference. A
template that writes an answer differently once more messages follow (as Qwen3
drops its reasoning) cannot be used so: a row that shows it is dropped, with the
turn named.

Some templates write the date (`strftime_now`). Data, for training and held out,
are rendered as on `DATE`, so that they are the same on every day; prompts to
sample from, as on the present day.
"""

import contextlib
import dataclasses
import datetime
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from dpo_jax import tokenizers
from dpo_jax.chat import (
  control_tokens,
  conversations,
  errors,
  reasoning,
  tool_calls,
)

Messages = conversations.Messages
Span = control_tokens.Span
Variables = Mapping[str, Any]

# The date that the templates of Llama 3 write by default.
DATE = datetime.datetime(2024, 7, 26)
_NO_CALLS = 'the template does not write the calls of tools'


class Texts(NamedTuple):
  """A prompt and its answers as text.

  rendered: whether a template wrote them, so that a turn's end ends answers.
  scored: the scored [begin, end) of the only answer; None for all of every
  answer. contents: the contents of the last messages, if they were rendered.
  literal: of the prompt and of each answer, where it holds control tokens that
  messages hold; None if no template wrote it. unread: fields of messages, and
  around them, that make no difference to the text.
  """

  prompt: str
  answers: tuple[str, ...]
  rendered: bool = False
  scored: tuple[Span, ...] | None = None
  contents: tuple[str, ...] | None = None
  literal: tuple[tuple[Span, ...], ...] | None = None
  unread: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Render:
  """How conversations become text.

  tokenizer: its `apply_chat`, `mark_answers`, `end_of_turn`, `control_pattern`
  and `template_variables` are used. Messages that its template refuses, or
  leaves out in part, are a RowError.
  turns: a key of `TURNS`. date: for templates; None for the present. chat:
  whether text is what users say and assistants answer. mark: whether control
  tokens in messages are kept apart from the template's.

  Variables are the template's inputs beside messages: {'tools': [...], ...}.
  """

  tokenizer: Any
  turns: str = 'last'
  date: datetime.datetime | None = None
  chat: bool = False
  mark: bool = True

  def last(
    self, context: Messages, answers: Messages, variables: Variables
  ) -> Texts:
    """The text up to an answer, and each answer without its end."""
    talks = [[*context, a] for a in answers] or [context]
    ready = [self._ready(talk, variables) for talk in talks]
    before, variables = ready[0][0][: len(context)], ready[0][1]
    prompt = self._apply(before, variables, add_generation_prompt=True)
    reasoning.check_written(before, prompt)
    talks = [talk for talk, _ in ready]
    written = [self._last(prompt, t, variables) for t in talks if answers]
    unread = dict.fromkeys(x for t in talks for x in self._unread(t, variables))
    return _unmarked([prompt, *written], unread=tuple(unread))

  def every(
    self, messages: Messages, flags: list[bool | None], variables: Variables
  ) -> Texts:
    """A conversation from its first scored answer to its last one.

    flags: False for answers that are not scored. The completion is without the
    end of the last answer.
    """
    wanted = [
      i
      for i, (message, flag) in enumerate(zip(messages, flags))
      if message['role'] == 'assistant' and flag is not False
    ]
    if not wanted:
      raise errors.RowError(
        'not_trained', 'no answer is marked as one that is trained on'
      )
    talk, variables = self._ready(messages[: wanted[-1] + 1], variables)
    text, spans = self._places(talk, wanted, variables)
    reasoning.check_written(talk, text)
    end = self._end(text)
    spans = [(b, min(e, end)) for b, e in spans if b < end]
    _check_last(text, spans, end)
    first = spans[0][0]
    prompt, completion = text[:first], text[first:end]
    scored = tuple(
      tuple(control_tokens.plain(completion, x - first) for x in span)
      for span in spans
    )
    unread = tuple(self._unread(talk, variables))
    called = any('tool_calls' in talk[i] for i in wanted)
    if called and 'messages.tool_calls' in unread:
      raise errors.RowError('message_left_out', _NO_CALLS)
    return _unmarked([prompt, completion], scored=scored, unread=unread)

  def reads(self, name: str, variables: Variables) -> bool:
    """Whether the template reads a variable of this name."""
    tools = bool(variables.get('tools'))
    return name in _refusals(self.tokenizer.template_variables, tools=tools)

  def _unread(self, messages: Messages, variables: Variables) -> list[str]:
    """The fields of messages without which the text would be the same."""
    names = {name for message in messages for name in message}
    groups = {name: (name,) for name in names - {'role', 'content'}}
    for name in conversations.REASONING:
      if groups.pop(name, None):
        groups['reasoning_content'] = conversations.REASONING
    if not groups:
      return []
    text = self._apply(messages, variables)
    out = []
    for name, group in sorted(groups.items()):
      less = [conversations.without(m, group) for m in messages]
      if self._same(less, variables, text):
        out.append(f'messages.{name}')
    return out

  def _ready(
    self, messages: Messages, variables: Variables
  ) -> tuple[Messages, Variables]:
    """Messages and variables as the template gets them."""
    messages = self._with_contents(messages, variables)
    messages = tool_calls.as_read(messages, lambda m: self._apply(m, variables))
    if not self.mark:
      return messages, variables
    pattern = self.tokenizer.control_pattern
    marked = [
      m if m['role'] == 'assistant' else control_tokens.mark(m, pattern)
      for m in messages
    ]
    control_tokens.check([*messages, dict(variables)])
    given = control_tokens.mark(dict(variables), pattern)
    if marked == messages and given == variables:
      return messages, variables
    text, _ = control_tokens.unmark(self._apply(marked, given))
    if text != self._apply(messages, variables):
      raise errors.RowError(
        'control_tokens',
        'a message holds control tokens, and what the template writes depends '
        'on them',
      )
    return marked, given

  def _with_contents(
    self, messages: Messages, variables: Variables
  ) -> Messages:
    """With null for absent contents, where the template needs that."""
    if all('content' in m for m in messages):
      return messages
    try:
      self._apply(messages, variables)
      return messages
    except errors.RowError as error:
      filled = [{'content': None} | m for m in messages]
      try:
        text = self._apply(filled, variables)
      except errors.RowError:
        raise error from None
      if text.count('None') > repr([messages, variables]).count('None'):
        raise
      return filled

  def _last(self, prompt: str, messages: Messages, variables: Variables) -> str:
    """The text of the last message after the prompt, without its end."""
    text = self._apply(messages, variables)
    end, answer = self._end(text), messages[-1]
    begins, found = text.startswith(prompt), text[len(prompt) : end]
    if begins and reasoning.kept(answer, found):
      reasoning.check_written([answer], found)
      self._check_called(messages, variables, text)
      return found
    opened = '' if begins else self._opened(prompt, messages, variables)
    if opened is None:
      self._check_begins(text, prompt, 'the last answer')
    return reasoning.after(opened, answer)

  def _check_called(
    self, messages: Messages, variables: Variables, text: str
  ) -> None:
    """RowError if the last message calls tools, and none is written."""
    if not messages[-1].get('tool_calls'):
      return
    less = conversations.without(messages[-1], ('tool_calls',))
    if self._same([*messages[:-1], less], variables, text):
      raise errors.RowError('message_left_out', _NO_CALLS)

  def _same(self, messages: Messages, variables: Variables, text: str) -> bool:
    """Whether messages give this text; not if they are refused."""
    with contextlib.suppress(errors.RowError):
      return self._apply(messages, variables) == text
    return False

  def _opened(
    self, prompt: str, messages: Messages, variables: Variables
  ) -> str | None:
    """What the prompt adds at its end that a finished turn does not have.

    None where the prompt differs from the finished turn in other ways.
    """
    plain = {'role': 'assistant', 'content': tokenizers.PROBE}
    text = self._apply([*messages[:-1], plain], variables)
    begin, found, _ = text.rpartition(tokenizers.PROBE)
    opened = prompt.removeprefix(begin)
    fits = found and prompt.startswith(begin) and opened.strip()
    return opened if fits else None

  def _places(
    self, messages: Messages, wanted: list[int], variables: Variables
  ):
    """The text of a conversation, and the [begin, end) of wanted answers."""
    given = self._given(variables)
    marked = _refusals(self.tokenizer.mark_answers, messages, **given)
    answers = [i for i, m in enumerate(messages) if m['role'] == 'assistant']
    if marked and len(wanted) == len(answers):
      found = marked
    elif marked and len(marked[1]) == len(answers):
      spans = dict(zip(answers, marked[1]))
      found = marked[0], [spans[i] for i in wanted]
    else:
      found = self._by_prefixes(messages, wanted, variables)
    text, spans = found
    if len(spans) == len(wanted):
      for i, (begin, end) in zip(wanted, spans):
        reasoning.check(messages[i], text[begin:end], f'message {i + 1}')
    return text, spans

  def _by_prefixes(self, messages, wanted, variables):
    text, spans = self._apply(messages, variables), []
    for i in wanted:
      before = messages[:i]
      begin = self._apply(before, variables, add_generation_prompt=True)
      answered = self._apply(messages[: i + 1], variables)
      turn = f'message {i + 1}, an answer'
      self._check_begins(answered, begin, turn)
      answered = answered[: self._end(answered)]
      if i + 1 < len(messages):
        answered += self.tokenizer.end_of_turn.token
      self._check_begins(text, answered, f'{turn} that others follow')
      spans.append((len(begin), len(answered)))
    return text, spans

  def _apply(self, messages: Messages, variables: Variables, **options) -> str:
    apply = self.tokenizer.apply_chat
    return _refusals(apply, messages, **self._given(variables), **options)

  def _given(self, variables: Variables) -> dict[str, Any]:
    day = {} if self.date is None else {'strftime_now': self.date.strftime}
    return {**variables, **day}

  def _end(self, text: str) -> int:
    """Where the end of the last answer begins."""
    end = self.tokenizer.end_of_turn
    if end is None:
      raise errors.RowError(
        'chat_template',
        'the end of an answer is not known: the template refuses a user and an '
        'assistant, with and without a system message before them, or does not '
        'write the answer as it is given',
      )
    if not text.endswith(end.tail):
      raise errors.RowError(
        'chat_template',
        f'an answer ends with {text[-20:]!r} here, elsewhere with {end.tail!r}',
      )
    return len(text) - len(end.tail) + len(end.before)

  def _check_begins(self, text: str, begin: str, what: str) -> None:
    if text.startswith(begin):
      return
    at = next(
      (i for i, (a, b) in enumerate(zip(text, begin)) if a != b), len(text)
    )
    raise errors.RowError(
      'chat_template',
      f'the template writes {what} in two ways: {begin[at : at + 30]!r} by '
      f'itself, {text[at : at + 30]!r} in the whole conversation. Where it '
      'writes reasoning, a variable of it may help, such as enable_thinking in '
      "chat_template_kwargs, or turns='last'",
    )


# Whose answers are scored.
TURNS = {'last': 'the last answer', 'all': 'every answer'}


def _unmarked(texts: list[str], **fields: Any) -> Texts:
  """The texts without marks of control tokens, and where these were."""
  (prompt, *answers), literal = zip(*map(control_tokens.unmark, texts))
  return Texts(prompt, tuple(answers), rendered=True, literal=literal, **fields)


def _check_last(text: str, spans: list[Span], end: int) -> None:
  """RowError unless the last of the spans goes to the end."""
  if not spans or text[spans[-1][1] : end].strip():
    raise errors.RowError(
      'chat_template', 'no {% generation %} block holds the last answer'
    )
  if spans[-1][1] < end:
    raise errors.RowError(
      'chat_template',
      'the {% generation %} block of the last answer must go up to the token '
      f'that ends it; it lacks {text[spans[-1][1] : end]!r}',
    )


def _refusals(fn: Callable, /, *args, **kwargs):
  try:
    return fn(*args, **kwargs)
  except ValueError as e:
    raise errors.RowError('chat_template', str(e)) from e
