"""Conversations as text, by the chat template of a tokenizer.

turns='last': the last answer is scored. What the template writes up to where it
begins is the prompt; what it writes of the last message, up to the token that
ends a turn, is the completion. So a template that trims an answer, or puts
something before it, does so in training too. One that leaves the thought of an
answer out is no model of what follows the prompt: see thoughts.py.

turns='all': every answer is scored, with the token that ends it, but those that
are flagged otherwise. The completion goes from the first answer to the last;
the other messages in it are not scored. Where the answers lie is what the
template's {% generation %} blocks say, if it has them. Otherwise every
conversation is rendered up to each answer and with it: an answer is what the
second has and the first has not. A template that writes an answer differently
once more follows (as Qwen3 drops its thoughts) cannot be used so, and a row
that shows it is dropped, with the turn named.

Some templates write the day (`strftime_now`). Data, for training and held out,
are rendered as on `DATE`, so that they are the same on every day; conversations
that are sampled, as on the present one.
"""

import contextlib
import dataclasses
import datetime
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from dpo_jax import tokenizers
from dpo_jax.data import calls, control, conversations, drops, thoughts

Messages = conversations.Messages
Span = control.Span
Variables = Mapping[str, Any]

# The day that the templates of Llama 3 write where they are not told any.
DATE = datetime.datetime(2024, 7, 26)
_NO_CALLS = 'the template does not write the calls of tools'


class Rendered(NamedTuple):
  """A conversation as text.

  scored: the [begin, end) of the only answer that are; None for all of every
  answer. literal: of the prompt and of each answer, where control tokens are
  that messages hold. unread: fields of messages that make no difference.
  """

  prompt: str
  answers: tuple[str, ...]
  scored: tuple[Span, ...] | None
  literal: tuple[tuple[Span, ...], ...]
  unread: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Render:
  """How conversations become text.

  tokenizer: its `apply_chat`, `mark_answers`, `end_of_turn`, `control_pattern`
  and `template_variables` are used. What its template refuses, or leaves out of
  what messages say, is a drops.RowError.
  turns: a key of `TURNS`. date: what templates are told of the time; None for
  the present. chat: whether text is what users say and assistants answer.
  mark: whether control tokens in messages are told apart from the template's.

  Variables are what the template takes beside messages: {'tools': [...], ...}.
  """

  tokenizer: Any
  turns: str = 'last'
  date: datetime.datetime | None = None
  chat: bool = False
  mark: bool = True

  def last(
    self, context: Messages, answers: Messages, variables: Variables
  ) -> Rendered:
    """What is written up to where an answer begins, and of each answer.

    The answers are without what ends them.
    """
    talks = [[*context, a] for a in answers] or [context]
    ready = [self._ready(talk, variables) for talk in talks]
    before, variables = ready[0][0][: len(context)], ready[0][1]
    prompt = self._apply(before, variables, add_generation_prompt=True)
    thoughts.check_written(before, prompt)
    talks = [talk for talk, _ in ready]
    written = [self._last(prompt, t, variables) for t in talks if answers]
    texts, literal = zip(*map(control.unmark, (prompt, *written)))
    unread = dict.fromkeys(x for t in talks for x in self._unread(t, variables))
    return Rendered(texts[0], texts[1:], None, literal, tuple(unread))

  def every(
    self, messages: Messages, flags: list[bool | None], variables: Variables
  ) -> Rendered:
    """A conversation from its first answer that is scored to its last one.

    flags: False for answers that are not scored. The completion is without the
    end of the last answer.
    """
    wanted = [
      i
      for i, (message, flag) in enumerate(zip(messages, flags))
      if message['role'] == 'assistant' and flag is not False
    ]
    if not wanted:
      raise drops.RowError(
        'not_trained', 'no answer is marked as one that is trained on'
      )
    talk, variables = self._ready(messages[: wanted[-1] + 1], variables)
    text, spans = self._places(talk, wanted, variables)
    thoughts.check_written(talk, text)
    end = self._end(text)
    spans = [(b, min(e, end)) for b, e in spans if b < end]
    _check_last(text, spans, end)
    first = spans[0][0]
    prompt, completion = text[:first], text[first:end]
    scored = tuple(
      tuple(control.plain(completion, x - first) for x in span)
      for span in spans
    )
    texts, literal = zip(*map(control.unmark, (prompt, completion)))
    unread = tuple(self._unread(talk, variables))
    called = any('tool_calls' in talk[i] for i in wanted)
    if called and 'messages.tool_calls' in unread:
      raise drops.RowError('message_left_out', _NO_CALLS)
    return Rendered(texts[0], texts[1:], scored, literal, unread)

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
    """Messages and variables as the template is given them."""
    messages = self._with_contents(messages, variables)
    messages = calls.as_read(messages, lambda m: self._apply(m, variables))
    if not self.mark:
      return messages, variables
    pattern = self.tokenizer.control_pattern
    marked = [
      m if m['role'] == 'assistant' else control.mark(m, pattern)
      for m in messages
    ]
    control.check([*messages, dict(variables)])
    given = control.mark(dict(variables), pattern)
    if marked == messages and given == variables:
      return messages, variables
    text, _ = control.unmark(self._apply(marked, given))
    if text != self._apply(messages, variables):
      raise drops.RowError(
        'control_tokens',
        'a message holds control tokens, and what the template writes depends '
        'on them',
      )
    return marked, given

  def _with_contents(
    self, messages: Messages, variables: Variables
  ) -> Messages:
    """With null for contents that are not there, where a template needs it."""
    if all('content' in m for m in messages):
      return messages
    try:
      self._apply(messages, variables)
      return messages
    except drops.RowError as error:
      filled = [{'content': None} | m for m in messages]
      try:
        text = self._apply(filled, variables)
      except drops.RowError:
        raise error from None
      if text.count('None') > repr([messages, variables]).count('None'):
        raise
      return filled

  def _last(self, prompt: str, messages: Messages, variables: Variables) -> str:
    """What is written of the last message, after its prompt, but its end."""
    text = self._apply(messages, variables)
    end, answer = self._end(text), messages[-1]
    begins, found = text.startswith(prompt), text[len(prompt) : end]
    if begins and thoughts.kept(answer, found):
      thoughts.check_written([answer], found)
      self._check_called(messages, variables, text)
      return found
    opened = '' if begins else self._opened(prompt, messages, variables)
    if opened is None:
      self._check_begins(text, prompt, 'the last answer')
    return thoughts.after(opened, answer)

  def _check_called(
    self, messages: Messages, variables: Variables, text: str
  ) -> None:
    """drops.RowError if the last message calls tools, and none is written."""
    if not messages[-1].get('tool_calls'):
      return
    less = conversations.without(messages[-1], ('tool_calls',))
    if self._same([*messages[:-1], less], variables, text):
      raise drops.RowError('message_left_out', _NO_CALLS)

  def _same(self, messages: Messages, variables: Variables, text: str) -> bool:
    """Whether messages give this text; not if they are refused."""
    with contextlib.suppress(drops.RowError):
      return self._apply(messages, variables) == text
    return False

  def _opened(
    self, prompt: str, messages: Messages, variables: Variables
  ) -> str | None:
    """What a prompt writes of an answer that a finished one does not have.

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
    """(text, [begin, end) of the answers that are wanted) of a conversation."""
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
        thoughts.check(messages[i], text[begin:end], f'message {i + 1}')
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
    """Where what ends the last answer begins."""
    end = self.tokenizer.end_of_turn
    if end is None:
      raise drops.RowError(
        'chat_template',
        'what ends an answer is not known: the template refuses a user and an '
        'assistant, with and without a system message before them, or does not '
        'write the answer as it is given',
      )
    if not text.endswith(end.tail):
      raise drops.RowError(
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
    raise drops.RowError(
      'chat_template',
      f'the template writes {what} in two ways: {begin[at : at + 30]!r} by '
      f'itself, {text[at : at + 30]!r} in the whole conversation. Where it '
      'writes thoughts, a variable of it may help, such as enable_thinking in '
      "chat_template_kwargs, or turns='last'",
    )


# Whose answers are scored.
TURNS = {'last': 'the last answer', 'all': 'every answer'}


def _check_last(text: str, spans: list[Span], end: int) -> None:
  """drops.RowError unless the last of the spans goes to the end."""
  if not spans or text[spans[-1][1] : end].strip():
    raise drops.RowError(
      'chat_template', 'no {% generation %} block holds the last answer'
    )
  if spans[-1][1] < end:
    raise drops.RowError(
      'chat_template',
      'the {% generation %} block of the last answer must go up to the token '
      f'that ends it; it lacks {text[spans[-1][1] : end]!r}',
    )


def _refusals(fn: Callable, /, *args, **kwargs):
  try:
    return fn(*args, **kwargs)
  except ValueError as e:
    raise drops.RowError('chat_template', str(e)) from e
