"""Values of options from text, as the command line gives it."""

import ast
import contextlib
import os
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

_KINDS = {
  bool: 'True or False',
  int: 'an integer',
  float: 'a number',
  str: 'a text',
  os.PathLike: 'a path',
  Sequence: "values such as ('a', 'b')",
  Mapping: "values such as {'a': 1}",
  types.NoneType: 'None',
}
_BOOLS = {'true': True, '1': True, 'false': False, '0': False}


def _kinds(annotation) -> tuple:
  union = typing.get_origin(annotation) in (types.UnionType, typing.Union)
  return typing.get_args(annotation) if union else (annotation,)


def parse(text: str, annotation: Any) -> Any:
  """The value of a text, of an annotated type; ValueError for another."""
  kinds = [typing.get_origin(kind) or kind for kind in _kinds(annotation)]
  if text == 'None' and types.NoneType in kinds:
    return None
  if bool in kinds and text.lower() in _BOOLS:
    return _BOOLS[text.lower()]
  for kind in (int, float):
    if kind in kinds:
      with contextlib.suppress(ValueError):
        return kind(text)
  literal = _literal(text)
  if Sequence in kinds and isinstance(literal, list | tuple):
    return tuple(literal)
  if Mapping in kinds and isinstance(literal, dict):
    return literal
  if str in kinds:
    return text
  if Sequence in kinds:
    return tuple(text.split(',')) if text else ()
  if not set(kinds) <= _KINDS.keys():
    return literal
  expected = ' or '.join(_KINDS[kind] for kind in kinds)
  raise ValueError(f'expected {expected}.')


def _literal(text: str) -> Any:
  """A Python literal as its value, any other text as it is."""
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError, MemoryError, RecursionError):
    return text


def inner(annotation) -> Any:
  """What the values of a mapping are; None for what is no mapping."""
  if annotation is Any:
    return Any
  for kind in _kinds(annotation):
    if typing.get_origin(kind) is Mapping:
      return typing.get_args(kind)[1]
  return None
