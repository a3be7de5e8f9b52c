"""Configs as text, a line for each value, and the lines that differ."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

_ABSENT = object()


def lines(config: Mapping[str, Any]) -> str:
  """'section.key: value' for each value, sorted by key; values are JSON."""
  return '\n'.join(f'{k}: {_show(v)}' for k, v in sorted(_flatten(config)))


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
  """'section.key: old -> new' for each value that differs, sorted by key.

  A value of None is the same as none.
  """
  old, new = dict(_flatten(old)), dict(_flatten(new))
  out = []
  for key in sorted({**old, **new}):
    a, b = old.get(key, _ABSENT), new.get(key, _ABSENT)
    if all(x is None or x is _ABSENT for x in (a, b)):
      continue
    # NaN differs from itself; its text does not.
    if a != b and _show(a) != _show(b):
      out.append(f'{key}: {_show(a)} -> {_show(b)}')
  return out


def _flatten(
  config: Mapping[str, Any], prefix: str = ''
) -> Iterator[tuple[str, Any]]:
  for key, value in config.items():
    if isinstance(value, dict) and value:
      yield from _flatten(value, f'{prefix}{key}.')
    else:
      yield prefix + key, value


def _show(value) -> str:
  return 'nothing' if value is _ABSENT else json.dumps(value, sort_keys=True)
