"""Names and shapes: what is expected against what is there."""

import re
from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple

from dpo_jax.models import config as model_config
from dpo_jax.models import specs
from dpo_jax.weights import tables

Shapes = dict[str, tuple[int, ...]]
_SHOWN, _TABLE = 40, 60


class Checkpoint(NamedTuple):
  """A checkpoint that is open: its config file's fields, what they mean."""

  layout: tables.Layout
  values: dict[str, Any]
  config: model_config.ModelConfig
  source: tables.Source


class Stored(NamedTuple):
  """A tensor that a checkpoint of a config consists of."""

  name: str
  shape: tuple[int, ...]
  layer: int | None  # None: the leaf has no layer axis.
  rule: tables.Rule


def stored(
  layout: tables.Layout, config: model_config.ModelConfig
) -> Iterator[list[Stored]]:
  """The tensors of `config` in this layout; those of one rule together."""
  table = specs.flat_specs(config)
  covered = set()
  for rule in layout.rules:
    if not all(path in table for path in rule.ours):
      continue
    covered.update(rule.ours)
    shapes = [table[path].shape for path in rule.ours]
    if '{i}' not in rule.theirs:
      yield [Stored(rule.theirs, rule.op.shape(*shapes), None, rule)]
      continue
    shape = rule.op.shape(*(s[1:] for s in shapes))
    yield [
      Stored(rule.theirs.format(i=i), shape, i, rule)
      for i in range(config.num_layers)
    ]
  if covered != table.keys():
    raise ValueError(
      f'This layout has no tensors for {sorted(table.keys() - covered)}.'
    )


def check(
  expected: Shapes,
  found: Shapes,
  where: str,
  ignored: Collection[str] = (),
  explain: Callable[[Shapes], str] = lambda found: '',
):
  """Raises one ValueError for all missing, unexpected and misshapen names.

  It ends with both inventories, and what `explain` says of what was found.
  """
  known = re.compile('|'.join(ignored) or '(?!)')
  found = {
    name: shape
    for name, shape in found.items()
    if name in expected or not known.fullmatch(name)
  }
  if found == expected:
    return
  lines = [f'{where} does not fit its config:']

  def report(title, names, text):
    names = sorted(names)
    lines.extend(f'  {title} {name}: {text(name)}' for name in names[:_SHOWN])
    if len(names) > _SHOWN:
      lines.append(f'  {title}: {len(names) - _SHOWN} more')

  report(
    'missing',
    expected.keys() - found.keys(),
    lambda n: f'expected {expected[n]}',
  )
  report(
    'unexpected',
    found.keys() - expected.keys(),
    lambda n: f'found {found[n]}',
  )
  report(
    'misshapen',
    (n for n in expected.keys() & found.keys() if expected[n] != found[n]),
    lambda n: f'expected {expected[n]}, found {found[n]}',
  )
  lines += [*_side_by_side(expected, found), explain(found)]
  raise ValueError('\n'.join(lines).rstrip())


def _side_by_side(expected: Shapes, found: Shapes) -> list[str]:
  """Both inventories, aligned; layers that are alike share a line."""
  groups = {}
  for name in {**expected, **found}:
    shapes = tuple(str(side.get(name, '-')) for side in (expected, found))
    match = re.fullmatch(r'(.*?\.)(\d+)(\..*)', name)
    key = (match[1], match[3]) if match else (name, '')
    number = [int(match[2])] if match else []
    groups.setdefault((key, shapes), []).extend(number)
  rows = [
    (f'{before}{_range(numbers)}{after}', *shapes)
    for ((before, after), shapes), numbers in groups.items()
  ]
  rows = [('All tensors:', 'by the config', 'there'), *rows]
  widths = [max(map(len, column)) for column in zip(*rows)]
  out = [
    '  '.join(map(str.ljust, row, widths)).rstrip() for row in rows[:_TABLE]
  ]
  more = len(rows) - _TABLE
  return [*out, f'and {more} more lines'] if more > 0 else out


def _range(numbers: list[int]) -> str:
  """'0-29' for consecutive numbers."""
  if not numbers:
    return ''
  first, last = min(numbers), max(numbers)
  if first == last:
    return str(first)
  if len(numbers) == last - first + 1:
    return f'{first}-{last}'
  return f'{{{",".join(map(str, sorted(numbers)))}}}'
