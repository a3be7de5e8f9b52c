"""Names to functions, options to keyword arguments, checked at build time."""

import difflib
import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any


def closest(name: str, known: Collection[str]) -> str:
  """Returns ' Did you mean ...?' or '' if nothing is near."""
  near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
  return f' Did you mean {near[0]!r}?' if near else ''


def unknown(what: str, name: object, known: Collection[str]) -> ValueError:
  """The error for a name that is not in `known`."""
  return ValueError(
    f'Unknown {what} {name!r}.{closest(str(name), known)} '
    f'Known: {", ".join(sorted(known))}.'
  )


def check_at_least(name: str, value: float, least: float) -> None:
  """ValueError for a value below `least`."""
  if not value >= least:
    raise ValueError(f'{name} is {value}; expected {least} or more.')


def check_integer(name: str, value: object, least: int) -> None:
  """ValueError for what is not an integer, or below `least`."""
  if not isinstance(value, int) or isinstance(value, bool):
    raise ValueError(f'{name} is {value!r}; expected an integer.')
  check_at_least(name, value, least)


def check_integers(*given: tuple[str, object, int]) -> None:
  """`check_integer` of each (name, value, least)."""
  for name, value, least in given:
    check_integer(name, value, least)


def lookup(table: Mapping[str, Any], name: str, what: str) -> Any:
  """Returns `table[name]`; an unknown name is a ValueError with the closest."""
  if not isinstance(name, str) or name not in table:
    raise unknown(what, name, table)
  return table[name]


def options_of(fn: Callable) -> dict[str, inspect.Parameter]:
  """The keyword-only parameters of `fn`: the options that it takes."""
  return {
    name: p
    for name, p in inspect.signature(fn).parameters.items()
    if p.kind is p.KEYWORD_ONLY
  }


def bind(
  fn: Callable,
  options: Mapping[str, Any],
  what: str,
  beside: Collection[str] = (),
) -> Callable:
  """Binds `options` to the keyword-only parameters of `fn`.

  `beside` are options that the caller takes itself; error messages name them.

  Raises ValueError for an option that `fn` does not take, and for a required
  one (no default) that is not given. A function with **options checks the rest
  itself.
  """
  known = options_of(fn)
  parameters = inspect.signature(fn).parameters.values()
  if not any(p.kind is p.VAR_KEYWORD for p in parameters):
    for name in options:
      if name not in known:
        raise unknown(f'option of {what}', name, (*known, *beside))
  missing = [
    n
    for n, p in known.items()
    if p.default is inspect.Parameter.empty and n not in options
  ]
  if missing:
    raise ValueError(f'{what} needs {", ".join(missing)}.')
  return functools.partial(fn, **options)


def build(
  table: Mapping[str, Callable], section: Mapping, what: str
) -> Callable:
  """Binds a section like dict(name='adamw', b1=0.8) to `table[name]`."""
  options = dict(section.items())
  if 'name' not in options:
    raise ValueError(
      f'The section for the {what} has no name. Known: '
      f'{", ".join(sorted(table))}.'
    )
  name = options.pop('name')
  return bind(lookup(table, name, what), options, f'{what} {name!r}')
