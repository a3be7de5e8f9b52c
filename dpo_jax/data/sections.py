"""The data sections of a config: what training and held-out data share."""

from collections.abc import Mapping
from typing import Any

from dpo_jax import registry
from dpo_jax.data import overlap, sources


def train_and_held_out(
  common: Mapping[str, Any] | None,
  train: Mapping[str, Any] | None,
  held_out: Mapping[str, Any] | None,
) -> tuple[dict[str, Any], dict[str, Any]]:
  """The sections train_data and eval_data, with what they have in common.

  Each may add to `common` or override it; a value of None is one not given.
  Where both read the same files, one without a `split` gets the other one's
  counterpart, 'train' or 'test'; different files are not split. Without
  `common` both are as they are given. ValueError if held-out rows would be
  trained on (`overlap.check`).
  """
  if common is None:
    for name, section in (('train_data', train), ('eval_data', held_out)):
      if section is None:
        raise ValueError(f'The config has neither {name} nor data.')
    sections = [dict(train), dict(held_out)]
  else:
    sections = [
      _given(common) | _given(section or {}) for section in (train, held_out)
    ]
    for section in sections:
      _check_path(section)
    _split(sections, common)
  overlap.check(*sections)
  return tuple(sections)


def _split(sections: list[dict[str, Any]], common: Mapping[str, Any]) -> None:
  if overlap.same(*sections):
    for section, split in zip(sections, overlap.splits(*sections)):
      section['split'] = split
  elif (
    not any('split' in section for section in sections)
    and common.get('held_out_fraction') is not None
  ):
    paths = [section.get('path') for section in sections]
    raise ValueError(
      f'data.held_out_fraction is of one file that is split in two, and '
      f'there are two: {paths[0]!r} and {paths[1]!r}.'
    )


def _given(section: Mapping[str, Any]) -> dict[str, Any]:
  """The section without what is None, or a mapping of nothing else."""
  out = {}
  for name, value in section.items():
    if isinstance(value, Mapping):
      value = _given(value) or None
    if value is not None:
      out[name] = value
  return out


def _check_path(section: Mapping[str, Any]) -> None:
  make = sources.SOURCES.get(section.get('source'))
  option = make and registry.options_of(make).get('path')
  if option and option.default is option.empty and 'path' not in section:
    raise ValueError(
      'Which data? Set --config.data.path to a file, for '
      f'--config.data.source={section["source"]}.'
    )
