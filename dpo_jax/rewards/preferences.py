"""Preferences between two completions, which need not come from scores.

fn(prompts, first, second) -> f32[N], the probability in [0, 1] that the first
completion is preferred to the second. A general preference may be intransitive,
as no reward's can be.
"""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dpo_jax import registry
from dpo_jax.rewards import checked_call, user_function


class Preference(NamedTuple):
  """A user's function under its path; a call checks what it returns."""

  path: str
  fn: Callable[[list[str], list[str], list[str]], Any]

  @property
  def source(self) -> str:
    """The path."""
    return self.path

  def files(self) -> list[pathlib.Path]:
    """The file that defines the function, by which a change is noticed."""
    return user_function.source_files(self.path, 'preference.path')

  def __call__(
    self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]
  ) -> np.ndarray:
    """The probability that each of `first` is preferred, f32[N].

    ValueError for what is not a probability or not one for each; RuntimeError,
    caused by it, for whatever the function raises.
    """
    what = f'preference {self.path!r}'
    texts = map(list, (prompts, first, second))
    wins_N = checked_call.call(what, 'pairs', self.fn, *texts)
    for i in np.flatnonzero(~((wins_N >= 0) & (wins_N <= 1)))[:1]:
      raise ValueError(
        f'The {what} returned {wins_N[i]} for pair {i + 1} '
        f'of {len(first)}, {first[i]!r} against {second[i]!r}; expected a '
        'probability, from 0 to 1.'
      )
    return wins_N


def build_preference(section: str | Mapping[str, Any]) -> Preference:
  """A preference from 'module:name', or dict(path='module:name', options={}).

  ValueError as for `user_function.function`.
  """
  section = {'path': section} if isinstance(section, str) else dict(section)
  fn = registry.bind(preference_function, section, 'preference')()
  return Preference(section['path'], fn)


def preference_function(*, path: str, options: Mapping[str, Any] | None = None):
  """A user's fn(prompts, first, second); see `user_function.function`."""
  return user_function.load(path, options, 'preference.path', arguments=3)
