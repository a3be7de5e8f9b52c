"""Rewards: functions of prompts and completions that give each a score.

A builder in `REWARDS` takes a reward's options as keywords and returns

  fn(prompts: Sequence[str], completions: Sequence[str]) -> f32[N]

fn([], []) returns f32[0], and loads what the reward needs: ValueError if that
fails. A builder raises ValueError for what is wrong with the options.
"""

import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dpo_jax import assets, registry
from dpo_jax.rewards import (
  checked_call,
  reward_model,
  sentiment,
  user_function,
)
from dpo_jax.rewards.preferences import (
  Preference,
  build_preference,
  preference_function,
)

__all__ = [
  'POSITIVE',
  'REWARDS',
  'Preference',
  'Reward',
  'RewardFn',
  'as_json',
  'build',
  'build_preference',
  'preference_function',
]

RewardFn = Callable[[Sequence[str], Sequence[str]], np.ndarray]
REWARDS: dict[str, Callable[..., RewardFn]] = {
  'vader': sentiment.vader,
  'classifier': sentiment.classifier,
  'reward_model': reward_model.reward_model,
  'function': user_function.function,
}
# The score from which a text counts as positive.
POSITIVE = {'vader': 0.05, 'classifier': 0.5}


class Reward(NamedTuple):
  """A reward under its name in `REWARDS`; a call checks what `fn` returns.

  positive: the score from which a text counts as positive; None: there is no
  such threshold. source: URI of the model, or path of the function; None for
  neither. files() -> what is there, by which a change is noticed.
  """

  name: str
  fn: RewardFn
  positive: float | None = None
  source: str | None = None
  files: Callable[[], list[pathlib.Path]] = list

  def __call__(
    self, prompts: Sequence[str], completions: Sequence[str]
  ) -> np.ndarray:
    """The score of each completion, f32[N]; without any, loads the reward.

    ValueError for scores that are not finite or not one for each completion;
    RuntimeError, caused by it, for whatever `fn` raises.
    """
    if not completions:
      return self.fn([], [])
    what = f'reward {self.name!r}'
    scores_N = checked_call.call(
      what, 'completions', self.fn, prompts, completions
    )
    for i in np.flatnonzero(~np.isfinite(scores_N))[:1]:
      raise ValueError(
        f'The {what} returned {scores_N[i]} for the completion '
        f'{_short(completions[i])} of the prompt {_short(prompts[i])}, number '
        f'{i + 1} of {len(completions)}; expected a finite number.'
      )
    return scores_N

  def check_room(self, prompt: str, max_new_tokens: int) -> None:
    """As `reward_model.RewardModel.check_room`; other rewards have room."""
    if isinstance(self.fn, reward_model.RewardModel):
      self.fn.check_room(prompt, max_new_tokens)


def build(section: str | Mapping[str, Any]) -> Reward:
  """A reward from its name, or from dict(name=..., **options).

  ValueError for an unknown name or option, and what its builder raises.
  """
  section = {'name': section} if isinstance(section, str) else section
  fn = registry.build(REWARDS, section, 'reward')()
  name = section['name']
  source, files = None, list
  if name == 'function':
    source = section['path']
    files = functools.partial(user_function.source_files, source)
  elif option := registry.options_of(REWARDS[name]).get('model'):
    source = section.get('model', option.default)
    files = functools.partial(assets.files_at, source)
  return Reward(name, fn, POSITIVE.get(name), source, files)


def as_json(scores_N: np.ndarray) -> list[float]:
  """The shortest decimals that round to these float32 scores."""
  return [float(str(x)) for x in scores_N]


def _short(text: str) -> str:
  return repr(text if len(text) <= 60 else f'{text[:57]}...')
