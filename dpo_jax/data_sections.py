"""The data sections of a config: shared options, splits, and no shared rows."""

import glob
import inspect
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from dpo_jax import registry
from dpo_jax.data import mixtures, sources

Section = Mapping[str, Any]


def train_and_held_out(
  common: Section | None, train: Section | None, held_out: Section | None
) -> tuple[dict[str, Any], dict[str, Any]]:
  """The sections train_data and eval_data, with the options of both.

  Each may add to `common` or override it; an option that is None is not given.
  Where both read the same files, one without a `split` gets the other one's
  counterpart, 'train' or 'test'; different files are not split. Without
  `common` both are as they are given. ValueError if held-out rows would be
  trained on.
  """
  if common is None:
    for name, section in (('train_data', train), ('eval_data', held_out)):
      if section is None:
        raise ValueError(f'The config has neither {name} nor data.')
    sections = dict(train), dict(held_out)
  else:
    sections = tuple(
      _given(common) | _given(section or {}) for section in (train, held_out)
    )
    for section in sections:
      option = _options(section).get('path')
      if option and option.default is option.empty and 'path' not in section:
        raise ValueError(
          'Which data? Set --config.data.path to a file, for '
          f'--config.data.source={section["source"]}.'
        )
    _split(*sections, common)
  check_overlap(*sections)
  return sections


def check_overlap(train: Section, held_out: Section) -> None:
  """ValueError if rows that are held out are trained on.

  Files are compared by name: copies of rows, a file of a directory that is read
  as well, and slices such as TFDS has are not detected.
  """
  for mine in map(_values, mixtures.part_sections(train)):
    for its in map(_values, mixtures.part_sections(held_out)):
      a, b = _rows_read(mine), _rows_read(its)
      parts = a.subsets is None or b.subsets is None or a.subsets & b.subsets
      if a.files & b.files and a.inside == b.inside and parts:
        _check_splits(mine, its)


class RowsRead(NamedTuple):
  """Which rows a section reads, before they are split.

  files: real paths, and URIs as they are given. inside: which files of a
  directory; subsets: which parts of a data set, None for all.
  """

  files: frozenset[str]
  inside: str | None
  subsets: frozenset[str] | None


def _split(train: dict, held_out: dict, common: Section) -> None:
  """Completes the splits of sections that read the same rows, in place."""
  mine, its = (
    [_rows_read(_values(part)) for part in mixtures.part_sections(section)]
    for section in (train, held_out)
  )
  if mine == its:
    mine, its = train.get('split'), held_out.get('split')
    train['split'] = mine or ('test' if its == 'train' else 'train')
    held_out['split'] = its or ('train' if mine == 'test' else 'test')
  elif (
    'split' not in train
    and 'split' not in held_out
    and common.get('held_out_fraction') is not None
  ):
    raise ValueError(
      'data.held_out_fraction is of one file that is split in two, and there '
      f'are two: {train.get("path")!r} and {held_out.get("path")!r}.'
    )


def _check_splits(mine: Section, its: Section) -> None:
  splits = mine.get('split'), its.get('split')
  what = mine.get('path') or mine.get('uri') or mine.get('source')
  both = f'train_data and eval_data both read {what!r}, with '
  if None not in splits and (splits[0] == splits[1] or 'all' in splits):
    raise ValueError(
      f'{both}split={splits[0]!r} and split={splits[1]!r}: held-out rows would '
      "be trained on. Give 'train' and 'test', or different files."
    )
  shares = mine.get('held_out_fraction'), its.get('held_out_fraction')
  if shares[0] != shares[1]:
    raise ValueError(
      f'{both}held_out_fraction={shares[0]} and {shares[1]}: give both the '
      'same.'
    )


def _given(section: Section) -> dict[str, Any]:
  """The section without options that are None, or mappings of only such."""
  out = {}
  for name, value in section.items():
    if isinstance(value, Mapping):
      value = _given(value) or None
    if value is not None:
      out[name] = value
  return out


def _values(section: Section) -> dict[str, Any]:
  """The section with the defaults of its source."""
  options = _options(section)
  defaults = {
    n: p.default for n, p in options.items() if p.default is not p.empty
  }
  return defaults | dict(section)


def _options(section: Section) -> dict[str, inspect.Parameter]:
  make = sources.SOURCES.get(section.get('source'))
  return registry.options_of(make) if make else {}


def _rows_read(values: Section) -> RowsRead:
  path, subsets = values.get('path') or values.get('uri'), values.get('subsets')
  if path is None:
    names = (values.get(name) for name in ('source', 'name', 'data_dir'))
    files = {' '.join(map(str, names))}
  else:
    paths = [path] if isinstance(path, str | os.PathLike) else path
    files = {file for p in paths for file in _files(str(p))}
  subsets = None if subsets is None else frozenset(subsets)
  return RowsRead(frozenset(files), values.get('files'), subsets)


def _files(path: str) -> list[str]:
  """A URI as it is given, or the real paths of a local path or glob."""
  if '://' in path:
    return [path]
  path = os.path.expanduser(path)
  found = [] if os.path.exists(path) else glob.glob(path, recursive=True)
  return [os.path.realpath(p) for p in found or [path]]
