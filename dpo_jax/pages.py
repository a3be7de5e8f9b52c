"""Config pages: Python files whose `get_config` returns the values of a run."""

import inspect
import os
import pathlib
import runpy
import traceback
from collections.abc import Mapping
from typing import Any, NamedTuple

from ml_collections import config_dict

from dpo_jax import registry


class Page(NamedTuple):
  """What a page returned, under the name of its file."""

  name: str
  config: Any


def folder() -> pathlib.Path:
  """Where the pages that come with dpo_jax are: installed, or in a checkout."""
  package = pathlib.Path(__file__).parent
  installed = package / 'configs'
  return installed if installed.is_dir() else package.parent / 'configs'


def shipped() -> dict[str, pathlib.Path]:
  """The pages that come with dpo_jax, by name."""
  files = sorted(folder().glob('*.py'))
  return {path.stem: path for path in files if path.stem != '__init__'}


def find(name: str) -> pathlib.Path:
  """The file of a page: a path, or the name of one that comes with dpo_jax.

  configs/dpo.py is the shipped page `dpo` where there is no such path.
  ValueError for an unknown one.
  """
  path = pathlib.Path(name).expanduser()
  if path.is_file():
    return path
  known = shipped()
  stem = name.removeprefix('configs/').removesuffix('.py')
  if stem not in known:
    raise ValueError(
      f'No page {name!r}.{registry.closest(stem, known)} Give the path of a '
      f'file, or one of: {", ".join(known)}.'
    )
  return known[stem]


def load(name: str) -> Page:
  """The page that 'NAME' or 'NAME:VARIANT' names; ValueError if it fails."""
  name, colon, variant = name.partition(':')
  path = find(name)
  try:
    get_config = runpy.run_path(str(path)).get('get_config')
    if not callable(get_config):
      raise ValueError('it has no function get_config()')
    if colon and not inspect.signature(get_config).parameters:
      raise ValueError(f'it has no variants, such as {variant!r}')
    config = get_config(variant) if colon else get_config()
    if not isinstance(config, dict | config_dict.ConfigDict):
      raise ValueError(f'get_config() returned {config!r}, which is no config')
  except Exception as error:
    raise ValueError(f'--config {path}{_described(error, path)}') from error
  return Page(path.stem, config)


def _described(error: Exception, path: pathlib.Path) -> str:
  """Where in a page its error is, and what it says, in one line."""
  if isinstance(error, ValueError):
    return f': {error}'
  frames = traceback.extract_tb(error.__traceback__)
  lines = [frame.lineno for frame in frames if frame.filename == str(path)]
  if isinstance(error, SyntaxError):
    error, lines = SyntaxError(error.msg), [error.lineno]
  where = f', line {lines[-1]}' if lines else ''
  return f'{where}: {type(error).__name__}: {error}'


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
  """A page as dicts, lists and JSON's values; paths become strings."""
  if isinstance(config, config_dict.ConfigDict):
    config = config.to_dict()
  return {name: _plain(value) for name, value in config.items()}


def _plain(value: Any) -> Any:
  if isinstance(value, Mapping | config_dict.ConfigDict):
    return plain(value)
  return os.fspath(value) if isinstance(value, os.PathLike) else value
