"""Suggests config fields that would make a checkpoint's tensors fit."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from dpo_jax.weights import expected_tensors, mapping


def suggest(
  checkpoint: mapping.Checkpoint, found: expected_tensors.Shapes, prefix: str
) -> str:
  """A sentence with config values that would fit the tensors `found`, or ''.

  Greedy: changes one field at a time, the one that makes most tensors fit,
  until none makes more of them fit. Fields are called by their names in the
  config
  file. prefix: what the names in `found` lack.
  """
  section = checkpoint.format.section
  if section:
    checkpoint = checkpoint._replace(
      format=checkpoint.format._replace(section=''),
      values=checkpoint.values[section],
    )
  values, changes = dict(checkpoint.values), {}

  def expected(candidate):
    # A candidate may be invalid for the family, the model or the shapes.
    try:
      config = mapping.read_config(
        checkpoint.format, candidate, checkpoint.reader
      )
      # A candidate may be a section, which lacks what tells the head.
      config = dataclasses.replace(config, head=checkpoint.config.head)
      groups = expected_tensors.list_tensors(checkpoint.format, config)
      return {s.name.removeprefix(prefix): s.shape for g in groups for s in g}
    except (ValueError, ArithmeticError, TypeError):
      return None

  def misfits(candidate):
    shapes = expected(candidate)
    if shapes is None:
      return math.inf
    return sum(
      shapes.get(name) != found.get(name) for name in {**shapes, **found}
    )

  left = misfits(values)
  while left:
    tried = [
      (misfits(values | {name: value}), name, value)
      for name, value in _candidates(
        checkpoint, values, expected, found, prefix
      )
      if name not in changes
    ]
    best, name, value = min(tried, default=(left, '', None), key=lambda t: t[0])
    if best >= left:
      break
    left, values[name] = best, value
    changes[name] = value
  if not changes:
    return ''
  text = ', '.join(
    f'{name} = {value!r} (not {_given(checkpoint, name)})'
    for name, value in changes.items()
  )
  where = f' in {section}' if section else ''
  end = '.' if not left else f'; {left} tensors would still not fit.'
  return f'The shapes suggest{where} {text}{end}'


def _given(checkpoint: mapping.Checkpoint, name: str) -> str:
  """The value of a field of the config file, or else its default."""
  value = checkpoint.values.get(name)
  if value is None:
    ours = {f.name: ours for ours, f in checkpoint.format.fields.items()}
    value = getattr(checkpoint.config, ours[name])
  return repr(value)


def _candidates(
  checkpoint, values: dict[str, Any], expected, found, prefix: str
) -> Iterator[tuple[str, Any]]:
  """(field, value) pairs that would make some tensor of `found` fit."""
  shapes = expected(values)
  for ours, field in checkpoint.format.fields.items():
    given = values.get(field.name)
    if given is None:
      given = getattr(checkpoint.config, ours)
    if isinstance(given, bool):
      yield field.name, not given
    elif ours == 'num_layers':
      yield field.name, _num_layers(checkpoint.format, found, prefix)
    elif isinstance(given, int) and given > 0:
      # Shapes are linear in most fields: two values give the slope.
      other = 2 * given
      more = expected(values | {field.name: other})
      if more is None:  # num_kv_heads must divide num_heads, as 1 does.
        other = 1
        more = expected(values | {field.name: other}) or {}
      wanted = {
        given + (other - given) * (seen - now) // (then - now)
        for name in shapes.keys() & found.keys() & more.keys()
        for now, then, seen in zip(shapes[name], more[name], found[name])
        if then != now != seen
      }
      yield from ((field.name, value) for value in sorted(wanted) if value > 0)


def _num_layers(
  format: mapping.Format, found: expected_tensors.Shapes, prefix: str
) -> int:
  """How many layers have tensors in `found`."""
  layers = 0
  for tensor in format.tensor_maps:
    name = tensor.name.removeprefix(prefix)
    while '{i}' in name and name.format(i=layers) in found:
      layers += 1
  return layers
