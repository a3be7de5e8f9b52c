"""Conversations as text, by the chat template of a tokenizer.

turns='last': the last answer is scored. What the template writes up to where it
begins is the prompt; what it writes of the last message, up to the token that
ends a turn, is the completion. So a template that trims an answer, or puts
something before it, does so in training too.

turns='all': every answer is scored, with the token that ends it. The completion
goes from the first answer to the last; the other messages in it are not scored.
Where the answers lie is what the template's {% generation %} blocks say, if it
has them. Otherwise every conversation is rendered up to each answer and with
it: an answer is what the second has and the first has not. A template that
writes an answer differently once more follows (as Qwen3 drops its thoughts)
cannot be used so, and a row that shows it is dropped, with the turn named.

Some templates write the day (`strftime_now`). Data, for training and held out,
are rendered as on `DATE`, so that they are the same on every day; conversations
that are sampled, as on the present one.
"""

import dataclasses
import datetime
from collections.abc import Callable
from typing import Any

from dpo_jax.data import drops

Messages = list[dict[str, Any]]
Span = tuple[int, int]

# The day that the templates of Llama 3 write where they are not told any.
DATE = datetime.datetime(2024, 7, 26)


@dataclasses.dataclass(frozen=True)
class Render:
  """How conversations become text; turns: a key of `TURNS`.

  tokenizer: its `apply_chat`, `mark_answers` and `end_of_turn` are used. What
  its template refuses is a drops.RowError. tools: those of the conversation, as
  the template takes them; [] for none. date: what templates are told of the
  time; None for the present.
  """

  tokenizer: Any
  turns: str = 'last'
  date: datetime.datetime | None = None

  def prompt(self, messages: Messages, tools: list) -> str:
    """Text up to where the assistant's answer begins."""
    return self._apply(messages, tools, add_generation_prompt=True)

  def last(self, prompt: str, messages: Messages, tools: list) -> str:
    """What is written of the last message, after its prompt, but its end."""
    text = self._apply(messages, tools)
    self._check_begins(text, prompt, 'the last answer')
    return text[len(prompt) : self._end(text)]

  def every(
    self, messages: Messages, tools: list
  ) -> tuple[str, str, tuple[Span, ...]]:
    """(prompt, completion, where answers lie in it) of a conversation.

    The completion is without the end of the last answer.
    """
    marked = _refusals(
      self.tokenizer.mark_answers, messages, **self._variables(tools)
    )
    text, spans = marked or self._by_prefixes(messages, tools)
    end = self._end(text)
    spans = [(b, min(e, end)) for b, e in spans if b < end]
    _check_last(text, spans, end)
    first = spans[0][0]
    answers = tuple((b - first, e - first) for b, e in spans)
    return text[:first], text[first:end], answers

  def _by_prefixes(self, messages: Messages, tools: list):
    text, spans = self._apply(messages, tools), []
    for i, message in enumerate(messages):
      if message['role'] != 'assistant':
        continue
      begin = self.prompt(messages[:i], tools)
      answered = self._apply(messages[: i + 1], tools)
      turn = f'message {i + 1}, an answer'
      self._check_begins(answered, begin, turn)
      answered = answered[: self._end(answered)]
      if i + 1 < len(messages):
        answered += self.tokenizer.end_of_turn.token
      self._check_begins(text, answered, f'{turn} that others follow')
      spans.append((len(begin), len(answered)))
    return text, spans

  def _apply(self, messages: Messages, tools: list, **options) -> str:
    apply = self.tokenizer.apply_chat
    return _refusals(apply, messages, **self._variables(tools), **options)

  def _variables(self, tools: list) -> dict[str, Any]:
    given = {'tools': tools} if tools else {}
    if self.date is not None:
      given['strftime_now'] = self.date.strftime
    return given

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
      f'itself, {text[at : at + 30]!r} in the whole conversation',
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


def _refusals(fn: Callable, *args, **kwargs):
  try:
    return fn(*args, **kwargs)
  except ValueError as e:
    raise drops.RowError('chat_template', str(e)) from e
