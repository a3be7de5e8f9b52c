"""A reward that is a user's own function, named by its module and name."""

import importlib
import inspect
import os
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dpo_jax import registry


def function(*, path: str, options: Mapping[str, Any] | None = None):
  """A function of a module that the working directory or Python's path has.

  path: 'package.module:name'. The function takes a list of prompts and a list
  of their completions, never empty, and returns one number for each.
  options: its keyword-only parameters.

  ValueError for a module that is not there or fails to import, for a name that
  it lacks or that is no such function, and for options that it does not take.
  """
  bound = load(path, options, 'reward.path', arguments=2)

  def fn(prompts: Sequence[str], completions: Sequence[str]) -> np.ndarray:
    scores = bound(list(prompts), list(completions)) if completions else []
    return np.asarray(scores, np.float32)

  return fn


def source_files(path: str, what: str = 'reward.path') -> list[pathlib.Path]:
  """The file that defines the function at a path; none for one without."""
  try:
    file = inspect.getsourcefile(_find(path, what))
  except TypeError:  # Built in, an object that is called, or of a notebook.
    file = None
  return [pathlib.Path(file)] if file and os.path.isfile(file) else []


def load(
  path: str, options: Mapping[str, Any] | None, what: str, *, arguments: int
) -> Callable:
  """The function at a path with its options bound; ValueError as above.

  what: names the path in errors. arguments: lists that it is called with.
  """
  found = _find(path, what)
  bound = registry.bind(found, options or {}, f'{what} {path!r}')
  try:
    inspect.signature(bound).bind(*[[]] * arguments)
  except TypeError as error:
    raise ValueError(
      f'{what} {path!r} cannot be called with a list of prompts and '
      f'{"lists" if arguments > 2 else "a list"} of completions: {error}.'
    ) from error
  return bound


def _find(path: str, what: str) -> Callable:
  module_name, colon, name = path.partition(':')
  if not (module_name and colon and name):
    raise ValueError(f"{what} is {path!r}; expected 'package.module:name'.")
  if not {'', os.getcwd()} & {*sys.path}:
    sys.path.append(os.getcwd())
  try:
    module = importlib.import_module(module_name)
  except Exception as error:
    raise ValueError(
      f'{what} {path!r}: the module {module_name!r} cannot be imported '
      f'with {os.getcwd()} on the path: {type(error).__name__}: {error}'
    ) from error
  if not hasattr(module, name):
    raise ValueError(
      f'{what} {path!r}: the module {module_name!r} has no {name!r}.'
      f'{registry.closest(name, vars(module))}'
    )
  found = getattr(module, name)
  if not callable(found):
    raise ValueError(f'{what} {path!r} is {found!r}; expected a function.')
  return found
