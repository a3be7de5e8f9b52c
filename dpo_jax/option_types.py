"""Options of a config page: values and sections, read from signatures.

An option that a function gains can be set at once.
"""

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from dpo_jax import registry

Path = tuple[str, ...]
REQUIRED = inspect.Parameter.empty


class Option(NamedTuple):
  """One value of a page.

  choices: what the value can be where it decides which other options there
  are; None for all others.
  """

  annotation: Any = Any
  default: Any = REQUIRED
  choices: Collection[str] | None = None


class Section(NamedTuple):
  """Options under one name; `known(values)` are those beside these values.

  others: types that can stand in place of the section: NoneType, str.
  """

  known: Callable[[Mapping[str, Any]], 'Options']
  others: tuple[type, ...] = ()


Options = Mapping[str, Option | Section]


def of(*functions: Callable) -> dict[str, Option]:
  """The keyword-only parameters of functions."""
  return {
    name: Option(p.annotation, p.default)
    for fn in functions
    for name, p in registry.options_of(fn).items()
  }


def fixed(*functions: Callable, **more: Option) -> Section:
  """A section whose options do not depend on its values."""
  return Section(lambda values: of(*functions) | more)


def named(table: Mapping[str, Callable], *others: type) -> Section:
  """A section whose `name` is a key of `table`, with its options."""

  def known(values):
    fn = table.get(values.get('name'))
    options = {} if fn is None else of(fn)
    return {'name': Option(str, choices=table), **options}

  return Section(known, others)
