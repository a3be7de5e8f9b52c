"""Which fields of a config file the shapes of its tensors ask to be changed."""

import math
from collections.abc import Iterator
from typing import Any

from dpo_jax.weights import inventory, tables

_FLAGS = {True: False, False: True}


def suggest(
  checkpoint: inventory.Checkpoint, found: inventory.Shapes, prefix: str
) -> str:
  """Values that would make the config fit `found`, in the file's own words.

  Fields are changed one by one, each time the one that most tensors ask for; ''
  where none makes more of them fit. `prefix` is what the names in `found` lack.
  """
  section = checkpoint.layout.section
  if section:
    checkpoint = checkpoint._replace(
      layout=checkpoint.layout._replace(section=''),
      values=checkpoint.values[section],
    )
  values, changes = dict(checkpoint.values), {}

  def expected(candidate):
    # A field may break rules of the family, of the model, of the shapes.
    try:
      config = tables.read_config(
        checkpoint.layout, candidate, checkpoint.source
      )
      groups = inventory.stored(checkpoint.layout, config)
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
  said = ', '.join(
    f'{name} = {value!r} (not {_given(checkpoint, name)})'
    for name, value in changes.items()
  )
  where = f' in {section}' if section else ''
  end = '.' if not left else f'; {left} tensors would still not fit.'
  return f'The shapes suggest{where} {said}{end}'


def _given(checkpoint: inventory.Checkpoint, name: str) -> str:
  value = checkpoint.values.get(name)
  if value is None:
    ours = {f.name: ours for ours, f in checkpoint.layout.fields.items()}
    value = getattr(checkpoint.config, ours[name])
  return repr(value)


def _candidates(
  checkpoint, values: dict[str, Any], expected, found, prefix: str
) -> Iterator[tuple[str, Any]]:
  """(field, value) pairs that some tensor of `found` asks for."""
  shapes = expected(values)
  for ours, field in checkpoint.layout.fields.items():
    given = values.get(field.name)
    if given is None:
      given = getattr(checkpoint.config, ours)
    if isinstance(given, bool):
      yield field.name, _FLAGS[given]
    elif ours == 'num_layers':
      yield field.name, _layers(checkpoint.layout, found, prefix)
    elif isinstance(given, int) and given > 0:
      # Shapes are linear in most fields: two values tell how.
      other = 2 * given
      more = expected(values | {field.name: other})
      if more is None:  # Heads that share keys are a divisor of all heads.
        other = 1
        more = expected(values | {field.name: other}) or {}
      wanted = {
        given + (other - given) * (seen - now) // (then - now)
        for name in shapes.keys() & found.keys() & more.keys()
        for now, then, seen in zip(shapes[name], more[name], found[name])
        if then != now != seen
      }
      yield from ((field.name, value) for value in sorted(wanted) if value > 0)


def _layers(layout: tables.Layout, found: inventory.Shapes, prefix: str) -> int:
  """How many layers have tensors in `found`."""
  layers = 0
  for rule in layout.rules:
    name = rule.theirs.removeprefix(prefix)
    while '{i}' in name and name.format(i=layers) in found:
      layers += 1
  return layers
