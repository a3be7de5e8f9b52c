"""A language model as judge, behind any OpenAI-compatible endpoint."""

import collections
import concurrent.futures
import json
import os
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tqdm

from dpo_jax import registry
from dpo_jax.judges import comparisons, templates, verdicts

Question = comparisons.Question
# Characters of English text in a token, for the estimate of costs.
CHARACTERS = 4
# Answers of an endpoint after which no other question can do better, and how
# many failures are as bad if no question was answered.
_HOPELESS = (401, 404)
_FAILURES = 10
# A key that is shorter is no secret, but any word.
_SECRET = 8


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
      if status == 401 or status is None:
        raise self._error(error) from None

  def bill(self, questions: Sequence[Question]) -> str:
    """How much asking takes, in tokens and, with `prices`, in money.

    By four characters a token, without what retries may cost.
    """
    sent = sum(len(self._text(q)) for q in questions) // CHARACTERS
    text = (
      f'{self.name} is asked {len(questions)} questions: about {sent:,} tokens '
      'sent'
    )
    most = self._options['request'].get('max_tokens')
    if most is None:
      return f'{text}, and replies without a bound.'
    received = most * len(questions)
    text += f', at most {received:,} received'
    if self._options['prices'] is not None:
      first, second = self._options['prices']
      text += f', about {(sent * first + received * second) / 1e6:.2f} in all'
    return f'{text}.'

  def ask(
    self,
    questions: Sequence[Question],
    record: Callable[[Question, dict[str, Any]], None],
  ) -> collections.Counter:
    """Asks all questions; record(question, fields of its vote) as they come.

    `record` is called from several threads. Returns how many questions failed,
    by the first error of each kind; they have no vote. ValueError, which ends
    the asking, where the endpoint refuses the key or does not have the model,
    and where ten questions failed and none was answered.
    """
    failed, lock = collections.Counter(), threading.Lock()
    texts, hopeless, answered = {}, [], []

    def one(question):
      if hopeless:
        return
      try:
        fields = self._ask(question)
      except Exception as error:  # The client's, or a reply that it can't read.
        with lock:
          kind = type(error).__name__
          texts.setdefault(kind, f'{kind}: {self._redact(str(error))}')
          failed[texts[kind]] += 1
          many = failed.total() >= min(_FAILURES, len(questions))
          if getattr(error, 'status_code', None) in _HOPELESS or (
            many and not answered
          ):
            hopeless.append(error)
      else:
        answered.append(question)
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
    choice = response.choices[0]
    said = verdicts.read(choice.message.content)
    if choice.finish_reason == 'length':  # The verdict may be cut off.
      said = 'unparsable'
    if getattr(choice.message, 'refusal', None):
      said = 'refused'
    fields = {
      'verdict': verdicts.of_sides(said, question.first),
      'reply': self._redact(choice.message.content),
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
    secret = len(self._key) >= _SECRET
    return text.replace(self._key, '[key]') if text and secret else text

  def _error(self, error: Exception) -> ValueError:
    url = self._client.base_url.copy_with(username=None, password=None)
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
  max_tokens: int | None = 256,
  request: Mapping[str, Any] | None = None,
  concurrency: int = 8,
  retries: int = 5,
  timeout_s: float = 60.0,
  prices: tuple[float, float] | None = None,
) -> Endpoint:
  """A judge by its model's name at an endpoint, through the openai client.

  base_url: None: OPENAI_BASE_URL, or OpenAI's. key_variable: the environment
  variable that holds the key, which is written nowhere. template: see
  `templates.load`. temperature, max_tokens and request are sent, but what is
  None. retries: of a question, with the client's backoff, after 429s,
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
    ('judge.max_tokens', 1 if max_tokens is None else max_tokens, 1),
    ('judge.concurrency', concurrency, 1),
    ('judge.retries', retries, 0),
  )
  if not timeout_s > 0:
    raise ValueError(f'judge.timeout_s is {timeout_s}; expected more than 0.')
  if not re.fullmatch(r'[A-Za-z_]\w*', key_variable):
    raise ValueError(
      'judge.key_variable is no name of an environment variable. Set the '
      'variable OPENAI_API_KEY to the key.'
    )
  if prices is not None and len(prices) != 2:
    raise ValueError(
      f'judge.prices is {prices}; expected two, of a million tokens sent and '
      'received.'
    )
  sent = {'temperature': temperature, 'max_tokens': max_tokens}
  sent = {
    n: x for n, x in (sent | dict(request or {})).items() if x is not None
  }

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
