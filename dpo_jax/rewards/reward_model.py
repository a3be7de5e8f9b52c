"""Rewards by a reward model of ours, or any classifier of one label."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from dpo_jax import assets, models, registry, tokenizers, weights
from dpo_jax.chat import errors
from dpo_jax.data import records, token_rules, tokenise
from dpo_jax.losses import logprobs
from dpo_jax.rewards import prompt_batches

FILE = 'reward.json'
Ids = list[int]


class Normalisation(NamedTuple):
  """Rewards of samples of a reference: mean and standard deviation.

  It is stored beside the weights, in reward.json, and the mean is subtracted
  from rewards, so that 0 is what the reference gets on average (section 3 of
  arXiv:2305.18290). samples: how many. reference: the URI of the sampled model.
  """

  mean: float
  std: float
  samples: int
  reference: str
  max_new_tokens: int

  def to_json(self) -> str:
    """The text of reward.json."""
    return json.dumps(self._asdict(), indent=2) + '\n'


def read_normalisation(folder: pathlib.Path) -> Normalisation | None:
  """What is stored beside the weights in `folder`; None if nothing is.

  ValueError for a file that is damaged.
  """
  path = folder / FILE
  if not path.is_file():
    return None
  values = assets.read_json(path)
  if not isinstance(values, dict) or set(values) != set(Normalisation._fields):
    raise ValueError(
      f'{str(path)!r} is {values!r}; expected the fields '
      f'{", ".join(Normalisation._fields)}.'
    )
  return Normalisation(**values)


def reward_model(
  *,
  model: str | None,
  batch_size: int = 16,
  max_length: int | None = None,
  chat: bool = False,
  dtype: str = 'float32',
):
  """The scalar of a reward model at the end of each completion, normalised.

  model: the params/ of a run, or the URI (see `assets.resolve`) of a folder
  with a sequence classifier of one label and its tokenizer; the first call
  loads it. Texts become tokens as in training: prompt and completion by
  themselves, after BOS if the tokenizer adds one; EOS ends the completion, also
  where a sample was cut off. max_length: of both, in tokens; None: the model's
  positions. chat: prompts were rendered by the chat template: their control
  tokens are tokens, and the end of a turn ends the completion. dtype: computed
  in.

  ValueError on loading for what is no reward model, or has another tokenizer;
  on a call for a prompt and completion longer than max_length.
  """
  if model is None:
    raise ValueError(
      'Which reward model? Set --config.reward.model to the params/ of a run '
      'of configs/reward_model.py, or to a URI.'
    )
  registry.check_integer('reward.batch_size', batch_size, 1)
  if max_length is not None:
    registry.check_integer('reward.max_length', max_length, 2)
  compute = models.Compute(dtype=dtype)
  return RewardModel(model, batch_size, max_length, chat, compute)


@dataclasses.dataclass(frozen=True, eq=False)
class RewardModel:
  """What `reward_model` builds; its weights are loaded by the first call."""

  model: str
  batch_size: int
  max_length: int | None
  chat: bool
  compute: models.Compute

  def __call__(
    self, prompts: Sequence[str], completions: Sequence[str]
  ) -> np.ndarray:
    """f32[N]; see `reward_model`."""
    loaded = self._loaded
    texts = [
      _checked(x, i, loaded)
      for i, x in enumerate(_encode(prompts, completions, loaded, self.chat))
    ]
    out = np.zeros(len(texts), np.float32)
    for batch in prompt_batches.group(texts, self.batch_size):
      *inputs, samples = batch
      found_S = np.asarray(self._scalars(loaded.params, *inputs))
      out[samples] = found_S[: len(samples)]
    return out - np.float32(loaded.mean)

  def check_room(self, prompt: str, max_new_tokens: int) -> None:
    """ValueError for a prompt that leaves no room for any completion.

    Warns if it leaves less than max_new_tokens, which are another tokenizer's.
    """
    (text,) = _encode([prompt], [''], self._loaded, self.chat)
    length, most = sum(map(len, text)), self._loaded.rules.max_length
    said = (
      f'A prompt has {length} tokens with EOS, of reward.model {self.model!r}, '
      f'which reads {most} with a completion (reward.max_length)'
    )
    if length >= most:
      raise ValueError(f'{said}. Use shorter prompts, or a larger max_length.')
    if length + max_new_tokens > most:
      logging.warning(
        '%s, so %d new tokens may be too many, which ends a run.',
        said,
        max_new_tokens,
      )

  @functools.cached_property
  def _loaded(self) -> '_Loaded':
    return _load(self.model, self.max_length, self.chat)

  @functools.cached_property
  def _scalars(self) -> Callable:
    return _make_scalars(self._loaded.config, self.compute)


class _Loaded(NamedTuple):
  config: models.ModelConfig
  params: Any
  tokenizer: tokenizers.Tokenizer
  rules: token_rules.TokenRules
  mean: float


def _load(uri: str, max_length: int | None, chat: bool) -> _Loaded:
  config = weights.read_config(uri)
  if config.head != 'scalar':
    raise ValueError(
      f'reward.model {uri!r} is a language model; expected a reward model: a '
      'sequence classifier of one label, such as the params/ of a run with '
      "method.name='reward_model'."
    )
  tokenizer = tokenizers.load(uri)
  if tokenizer.vocab_size > config.vocab_size:
    raise ValueError(
      f'The tokenizer of reward.model {uri!r} has {tokenizer.vocab_size} '
      f'tokens, but the model has a vocabulary of {config.vocab_size}: they '
      'belong to two models.'
    )
  if max_length is not None and max_length > config.max_positions:
    raise ValueError(
      f'reward.max_length is {max_length}, but the model has '
      f'{config.max_positions} positions.'
    )
  rules = token_rules.resolve(
    tokenizer,
    max_length=max_length or config.max_positions,
    truncation='drop',
    control_tokens='tokens' if chat else 'text',
  )
  found = read_normalisation(assets.resolve(uri))
  _, params = weights.load(uri)
  return _Loaded(config, params, tokenizer, rules, found.mean if found else 0.0)


def _make_scalars(config: models.ModelConfig, compute: models.Compute):
  """Compiles scalars(params, tokens_1xL, layout, last_1xS) -> f32[S]."""
  policy = models.policy(config, compute)

  @jax.jit
  def scalars(params, tokens_1xL, layout, last_1xS):
    hidden = policy.hidden(params, tokens_1xL, layout)
    return policy.scalar(params, logprobs.take_rows(hidden, last_1xS))[0]

  return scalars


def _encode(
  prompts, completions, loaded: _Loaded, chat: bool
) -> Iterator[tuple[Ids, Ids]]:
  """(prompt, completion) as ids; ValueError for what has none."""
  items = [
    records.Record(prompt, (completion,), ((0,),), rendered=chat)
    for prompt, completion in zip(prompts, completions, strict=True)
  ]
  rules = loaded.rules
  encoded = tokenise.encode(items, loaded.tokenizer, tokens=rules.recognises)
  for i, (item, found) in enumerate(zip(items, encoded, strict=True)):
    if isinstance(found, errors.RowError):
      raise ValueError(f'Completion {i + 1}: {found.detail}')
    root = token_rules.rooted(found.prompt, rules)
    yield root, [*found.completions[0], *rules.end(item)]


def _checked(text: tuple[Ids, Ids], i: int, loaded: _Loaded) -> tuple[Ids, Ids]:
  """`text`; ValueError if it has no tokens, or too many."""
  length = sum(map(len, text))
  if not 0 < length <= loaded.rules.max_length:
    raise ValueError(
      f'Completion {i + 1} has {length} tokens with its prompt and EOS; '
      f'expected 1 to {loaded.rules.max_length} (reward.max_length).'
    )
  return text
