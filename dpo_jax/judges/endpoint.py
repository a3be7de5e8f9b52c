"""A language model as judge, behind any OpenAI-compatible endpoint."""

import collections
import concurrent.futures
import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tqdm

from dpo_jax import registry
from dpo_jax.judges import comparisons, templates, verdicts

Question = comparisons.Question
# Characters of English text in a token, for the estimate of costs.
CHARACTERS = 4
# Answers of an endpoint after which no other question can do better.
_HOPELESS = (401, 403, 404)


class Endpoint:
  """A judge that is asked over HTTP; see `endpoint` for its options.

  check() comes before the first question.
  """

  def __init__(self, connect: Callable[[], Any], key_variable: str, **options):
    self._connect, self._key_variable = connect, key_variable
    self._options = options
    self._client, self._key = None, ''
    self.name = options['model']
    told = [options[x] for x in ('model', 'template', 'request')]
    self.fingerprint = json.dumps(told, sort_keys=True)

  def check(self) -> None:
    """ValueError without a key, or if the endpoint is not there or refuses it.

    It lists its models, which is free; one without such a list is taken as it
    is. A model that is not listed is no error: some have other names.
    """
    import openai

    self._key = os.environ.get(self._key_variable, '')
    if not self._key:
      raise ValueError(
        f'The judge needs a key: set the environment variable '
        f'{self._key_variable} (to any word for an endpoint without keys).'
      )
    self._client = self._connect(self._key)
    try:
      self._client.models.list()
    except (openai.APIConnectionError, openai.APIStatusError) as error:
      status = getattr(error, 'status_code', None)
      if status in (401, 403) or status is None:
        raise self._error(error) from None

  def estimate(self, questions: Sequence[Question]) -> tuple[int, int]:
    """(tokens sent, at most tokens received), by four characters a token."""
    sent = sum(len(self._text(q)) for q in questions) // CHARACTERS
    received = self._options['request'].get('max_tokens', 0) * len(questions)
    return sent, received

  def bill(self, questions: Sequence[Question]) -> str:
    """How much asking takes at most, in tokens and, with `prices`, in money."""
    sent, received = self.estimate(questions)
    text = (
      f'{self.name} is asked {len(questions)} questions: about {sent:,} tokens '
      f'sent, at most {received:,} received'
    )
    if self._options['prices'] is not None:
      first, second = self._options['prices']
      text += f', at most {(sent * first + received * second) / 1e6:.2f} in all'
    return f'{text}.'

  def ask(
    self,
    questions: Sequence[Question],
    record: Callable[[Question, dict[str, Any]], None],
  ) -> collections.Counter:
    """Asks all questions; record(question, fields of its vote) as they come.

    `record` is called from several threads. Returns how many questions failed
    by the kind of error; they have no vote. ValueError, which ends the asking,
    where the endpoint refuses the key or does not have the model.
    """
    failed, lock, hopeless = collections.Counter(), threading.Lock(), []

    def one(question):
      if hopeless:
        return
      try:
        fields = self._ask(question)
      except (
        Exception
      ) as error:  # Of the client, or of JSON that it cannot read.
        if getattr(error, 'status_code', None) in _HOPELESS:
          hopeless.append(error)
        with lock:
          failed[type(error).__name__] += 1
      else:
        record(question, fields)

    with concurrent.futures.ThreadPoolExecutor(
      self._options['concurrency']
    ) as pool:
      try:
        asked = [pool.submit(one, question) for question in questions]
        done = concurrent.futures.as_completed(asked)
        for future in tqdm.tqdm(done, 'judging', len(asked)):
          future.result()
      except BaseException:
        pool.shutdown(cancel_futures=True)
        raise
    if hopeless:
      raise self._error(hopeless[0]) from None
    return failed

  def _ask(self, question: Question) -> dict[str, Any]:
    response = self._client.chat.completions.create(
      model=self.name,
      messages=[{'role': 'user', 'content': self._text(question)}],
      **self._options['request'],
    )
    message = response.choices[0].message
    reply = self._redact(message.content)
    refused = getattr(message, 'refusal', None)
    said = 'refused' if refused else verdicts.read(reply)
    fields = {
      'verdict': verdicts.of_sides(said, question.first),
      'reply': reply,
    }
    if response.usage is not None:
      used = response.usage
      fields['tokens'] = [used.prompt_tokens, used.completion_tokens]
    return fields

  def _text(self, question: Question) -> str:
    first, second = question.shown
    return self._options['template'].format(
      prompt=question.comparison.prompt, first=first, second=second
    )

  def _redact(self, text: str | None) -> str | None:
    return text and text.replace(self._key, '[key]')

  def _error(self, error: Exception) -> ValueError:
    url = self._client.base_url
    return ValueError(
      f'The judge {self.name!r} at {url} cannot be asked: '
      f'{type(error).__name__}: {self._redact(str(error))}'
    )


def endpoint(
  *,
  model: str,
  base_url: str | None = None,
  key_variable: str = 'OPENAI_API_KEY',
  template: str = 'dialogue',
  temperature: float | None = 0.0,
  max_tokens: int = 256,
  request: Mapping[str, Any] | None = None,
  concurrency: int = 8,
  retries: int = 5,
  timeout_s: float = 60.0,
  prices: tuple[float, float] | None = None,
) -> Endpoint:
  """A judge by its model's name at an endpoint, through the openai client.

  base_url: None: OPENAI_BASE_URL, or OpenAI's. key_variable: the environment
  variable that holds the key; it is written nowhere. template: see
  `templates.load`. temperature, max_tokens and request are sent; None sends no
  temperature. retries: of a question, with the client's backoff, after 429s,
  5xx, timeouts and lost connections. prices: of a million tokens sent and
  received. ValueError without the client's package.
  """
  try:
    import openai
  except ImportError as error:
    raise ValueError(
      "The judge 'endpoint' needs the package openai: pip install openai"
    ) from error
  registry.check_integers(
    ('judge.max_tokens', max_tokens, 1),
    ('judge.concurrency', concurrency, 1),
    ('judge.retries', retries, 0),
  )
  if not timeout_s > 0:
    raise ValueError(f'judge.timeout_s is {timeout_s}; expected more than 0.')
  sent = {'max_tokens': max_tokens, **(request or {})}
  if temperature is not None:
    sent['temperature'] = temperature

  def connect(key):
    return openai.OpenAI(
      api_key=key, base_url=base_url, max_retries=retries, timeout=timeout_s
    )

  return Endpoint(
    connect,
    key_variable,
    model=model,
    template=templates.load(template),
    request=sent,
    concurrency=concurrency,
    prices=prices,
  )
