"""Values from the command line in place of those of a config page."""

import copy
import types
from collections.abc import Mapping
from typing import Any, NamedTuple

from ml_collections import config_dict

from dpo_jax import option_types, option_values, options, registry
from dpo_jax.methods import scoring


class Changes(NamedTuple):
  """What the command line makes of a page.

  given: values by path. dropped: options of the page that do not go with them.
  """

  given: dict[option_types.Path, Any]
  dropped: list[option_types.Path]


def apply(
  page: Mapping[str, Any], given: Mapping[str, str], top: option_types.Section
) -> tuple[dict[str, Any], list[str]]:
  """(config, dropped): a page with the options in `given`, 'a.b' -> text.

  With another name, loss, or source come other options. The page's values of
  those that there are no more are dropped, and so are values that were the
  default of an option whose default is another one now. ValueError for an
  option that the config then does not take, and for a value of another type.
  """
  config = config_dict.ConfigDict(copy.deepcopy(page))
  values = config.to_dict()
  changes = Changes({}, _shadowed(values, tree := _tree(given)))
  try:
    _merge((), top, top, values, tree, changes)
  except _UnknownOption as error:
    raise options.unknown(*error.args, top, _overlaid(values, tree)) from None
  with config.unlocked(), config.ignore_type():
    for path in changes.dropped:
      del _parent(config, path)[path[-1]]
    for path, value in changes.given.items():
      _parent(config, path)[path[-1]] = value
  dropped = ['.'.join(p) for p in changes.dropped if _said(values, p)]
  return config.to_dict(), dropped


def _said(values: Mapping[str, Any], path: option_types.Path) -> bool:
  """Whether the page has more than None there."""
  for name in path:
    values = values[name]
  inside = values.values() if isinstance(values, Mapping) else [values]
  return any(value is not None for value in inside)


class _UnknownOption(Exception):
  """args: the path of a section, the section, a name that it does not have."""


def _parent(config: config_dict.ConfigDict, path: option_types.Path):
  """The section of a path, which is made where it is not there."""
  for name in path[:-1]:
    if not isinstance(config.get(name), config_dict.ConfigDict):
      config[name] = config_dict.ConfigDict(type_safe=False)
    config = config[name]
  return config


def _tree(given: Mapping[str, str]) -> dict[str, Any]:
  """{'a.b': text} as {'a': {'b': text}}."""
  tree = {}
  for name, text in given.items():
    inside = [other for other in given if other.startswith(f'{name}.')]
    if inside:
      raise ValueError(f'{_flag(name)} and {_flag(inside[0])} are both given.')
    *path, last = name.split('.')
    branch = tree
    for part in path:
      branch = branch.setdefault(part, {})
    branch[last] = text
  return tree


def _flag(*path: str) -> str:
  return f'--config.{".".join(path)}'


def _shadowed(
  values: dict[str, Any], tree: dict[str, Any]
) -> list[option_types.Path]:
  """Options of both data sections of the page that `data` is given for."""
  common = tree.get('data', {})
  return [
    (part, name)
    for part in ('train_data', 'eval_data')
    for name in (common if isinstance(common, dict) else ())
    if name in (values.get(part) or {}) and name not in tree.get(part, {})
  ]


def _overlaid(values: Mapping[str, Any], tree: Mapping[str, Any]) -> dict:
  """The values with the given texts in their places."""
  out = dict(values)
  for name, given in tree.items():
    inside = out.get(name)
    if isinstance(given, dict):
      inside = inside if isinstance(inside, Mapping) else {}
      given = _overlaid(inside, given)
    out[name] = given
  return out


def _merge(
  path: option_types.Path,
  before: option_types.Section,
  after: option_types.Section,
  values: Mapping[str, Any],
  tree: Mapping[str, Any],
  changes: Changes,
) -> None:
  """Adds the changes to a section that had `values` and is given `tree`."""
  known_before = before.known(values)
  values = {
    name: value
    for name, value in values.items()
    if (*path, name) not in changes.dropped
  }
  while True:
    known = after.known(_overlaid(values, tree))
    lost = _lost(known_before, known, values, tree)
    if not lost:
      break
    for name in lost:
      del values[name]
      changes.dropped.append((*path, name))
  for name, text in tree.items():
    while name not in known:
      if isinstance(text, str):
        raise _UnknownOption(path, after, name)
      inside, text = next(iter(text.items()))
      name = f'{name}.{inside}'
  for name in {**values, **tree}:
    if name in known:
      old = known_before.get(name, known[name])
      given = values.get(name), tree.get(name)
      _set((*path, name), old, known[name], *given, changes)


def _lost(
  before: option_types.Options,
  known: option_types.Options,
  values: Mapping[str, Any],
  tree: Mapping[str, Any],
) -> list[str]:
  """Names of values that the options `before` took and `known` do not take."""
  names = [name for name in values if name in before and name not in tree]
  impossible = [
    name
    for name in names
    if _possible(before[name], values[name])
    and not _possible(known.get(name), values[name])
  ]
  return impossible or [
    name
    for name in names
    if name not in known
    or _means_another(name, before[name], known[name], values[name])
  ]


def _possible(
  option: option_types.Option | option_types.Section | None, value
) -> bool:
  choices = getattr(option, 'choices', None)
  return choices is None or value is None or value in choices


def _means_another(
  name: str,
  before: option_types.Option | option_types.Section,
  option: option_types.Option | option_types.Section,
  value: Any,
) -> bool:
  """Whether a value of the page has another meaning with the new choice.

  So it is for a value that was the default, where the default is another now;
  and for the path of a source that has a default path, as the other has.
  """
  if not isinstance(option, option_types.Option) or option.choices is not None:
    return False
  old, new = before.default, option.default
  if name == 'path' and not {option_types.REQUIRED, None} & {old, new}:
    return old != new != value
  return value == old != new


def _set(
  path: option_types.Path,
  before: option_types.Option | option_types.Section,
  option: option_types.Option | option_types.Section,
  value: Any,
  given: Any,
  changes: Changes,
) -> None:
  """Adds what is given for one option, a text or texts by name, or nothing."""
  if isinstance(option, option_types.Section):
    inside = value if isinstance(value, Mapping) else {}
    if isinstance(given, str):
      changes.given[path] = _in_place(path, option, inside, given)
      return
    if isinstance(value, str) and given:
      # A name alone is a section with this name.
      inside = {'name': value}
      changes.given[*path, 'name'] = value
    _merge(path, before, option, inside, given or {}, changes)
  elif isinstance(given, str):
    changes.given[path] = _parsed(path, given, option.annotation)
    # A reference that a loss has no use for: the method says why.
    known = path == ('method', 'reference') and given in scoring.REFERENCES
    if not known and not _possible(option, changes.given[path]):
      raise registry.unknown('.'.join(path), given, option.choices)
  elif given is not None:
    inner = option_values.inner(option.annotation)
    if inner is None:
      raise _UnknownOption(path, None, next(iter(given)))
    for name, text in given.items():
      _set((*path, name), None, option_types.Option(inner), None, text, changes)


def _in_place(
  path: option_types.Path, section: option_types.Section, inside, text: str
):
  """The value of a section that is given as one text."""
  if text == 'None' and types.NoneType in section.others:
    return None
  if str in section.others:
    return text
  names = ', '.join(section.known(inside))
  raise ValueError(
    f'{_flag(*path)}={text}: {path[-1]} is a section; give its options '
    f'one by one, as {_flag(*path)}.OPTION=VALUE: {names}.'
  )


def _parsed(path: option_types.Path, text: str, annotation) -> Any:
  try:
    return option_values.parse(text, annotation)
  except ValueError as error:
    raise ValueError(f'{_flag(*path)}={text}: {error}') from None
