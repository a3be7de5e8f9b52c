"""Training and held-out sections of a config: what they read is kept apart."""

import glob
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from dpo_jax import registry
from dpo_jax.data import sources

Section = Mapping[str, Any]


class Place(NamedTuple):
  """Which rows a section reads, before they are split.

  files: real paths, and URIs as they are given. inside: which files of a
  directory; subsets: which parts of a data set, None for all.
  """

  files: frozenset[str]
  inside: str | None
  subsets: tuple[str, ...] | None

  def overlaps(self, other: 'Place') -> bool:
    """Whether rows may be in both."""
    mine, its = self.subsets, other.subsets
    return (
      bool(self.files & other.files)
      and self.inside == other.inside
      and (mine is None or its is None or bool(set(mine) & set(its)))
    )


def same(one: Section, other: Section) -> bool:
  """Whether two sections read the same rows, their splits aside."""
  places = [[_place(p) for p in _parts(section)] for section in (one, other)]
  return places[0] == places[1]


def splits(train: Section, held_out: Section) -> tuple[str, str]:
  """Those of two sections of the same rows; the given one names the other."""
  mine, its = train.get('split'), held_out.get('split')
  return (
    mine or ('test' if its == 'train' else 'train'),
    its or ('train' if mine == 'test' else 'test'),
  )


def check(train: Section, held_out: Section) -> None:
  """ValueError if rows that are held out are trained on.

  Files are told apart by their names: copies of rows, a file of a directory
  that is read as well, and slices such as TFDS has are not seen.
  """
  for mine in _parts(train):
    for its in _parts(held_out):
      if _place(mine).overlaps(_place(its)):
        _check_splits(_values(mine), _values(its))


def _check_splits(mine: Section, its: Section) -> None:
  splits = mine.get('split'), its.get('split')
  what = mine.get('path') or mine.get('uri') or mine.get('source')
  if None not in splits and (splits[0] == splits[1] or 'all' in splits):
    raise ValueError(
      f'train_data and eval_data both read {what!r}, with split={splits[0]!r} '
      f'and split={splits[1]!r}: held-out rows would be trained on. Give '
      "'train' and 'test', or different files."
    )
  shares = mine.get('held_out_fraction'), its.get('held_out_fraction')
  if shares[0] != shares[1]:
    raise ValueError(
      f'train_data and eval_data both read {what!r}, with held_out_fraction='
      f'{shares[0]} and {shares[1]}: give both the same.'
    )


def _parts(section: Section) -> list[dict[str, Any]]:
  """The parts of a mixture as sections, or the section."""
  parts = section.get('parts')
  if not isinstance(parts, Mapping):
    return [dict(section)]
  shared = {n: v for n, v in section.items() if n not in ('source', 'parts')}
  return [
    {**shared, **part}
    for _, part in sorted(parts.items())
    if isinstance(part, Mapping)
  ]


def _values(section: Section) -> dict[str, Any]:
  """The section with the defaults of its source."""
  make = sources.SOURCES.get(section.get('source'))
  options = registry.options_of(make) if make else {}
  defaults = {
    n: p.default for n, p in options.items() if p.default is not p.empty
  }
  return defaults | dict(section)


def _place(section: Section) -> Place:
  values = _values(section)
  path, subsets = values.get('path') or values.get('uri'), values.get('subsets')
  if path is None:
    names = (values.get(name) for name in ('source', 'name', 'data_dir'))
    files = {' '.join(map(str, names))}
  else:
    paths = [path] if isinstance(path, str | os.PathLike) else path
    files = {file for p in paths for file in _files(str(p))}
  subsets = None if subsets is None else tuple(subsets)
  return Place(frozenset(files), values.get('files'), subsets)


def _files(path: str) -> list[str]:
  """Of a URI itself; of a local path or glob the real paths."""
  if '://' in path:
    return [path]
  path = os.path.expanduser(path)
  found = [] if os.path.exists(path) else glob.glob(path, recursive=True)
  return [os.path.realpath(p) for p in found or [path]]
