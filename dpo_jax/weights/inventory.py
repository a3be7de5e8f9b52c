"""Names and shapes: what is expected against what is there."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from dpo_jax.models import config as model_config
from dpo_jax.models import specs
from dpo_jax.weights import tables

Shapes = dict[str, tuple[int, ...]]
_SHOWN = 40


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


def check(expected: Shapes, found: Shapes, where: str, ignored=()):
  """Raises one ValueError for all missing, unexpected and misshapen names."""
  known = re.compile('|'.join(ignored) or '(?!)')
  lines = []

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
    (n for n in found.keys() - expected.keys() if not known.fullmatch(n)),
    lambda n: f'found {found[n]}',
  )
  report(
    'misshapen',
    (n for n in expected.keys() & found.keys() if expected[n] != found[n]),
    lambda n: f'expected {expected[n]}, found {found[n]}',
  )
  if lines:
    raise ValueError(f'{where} does not fit its config:\n' + '\n'.join(lines))
