"""The tensors that a checkpoint must have, and a check that it has them."""

import re
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

from dpo_jax.models import config as model_config
from dpo_jax.models import specs
from dpo_jax.weights import mapping

Shapes = dict[str, tuple[int, ...]]
# The most lines of an error: names of one problem, rows of the table.
_MAX_NAMES, _MAX_ROWS = 40, 60


class ExpectedTensor(NamedTuple):
  """A tensor that a checkpoint of some config must have."""

  name: str
  shape: tuple[int, ...]
  layer: int | None  # None: the leaves have no layer axis.
  tensor_map: mapping.TensorMap


def list_tensors(
  format: mapping.Format, config: model_config.ModelConfig
) -> Iterator[list[ExpectedTensor]]:
  """The tensors of a model in this format, one list for each `TensorMap`.

  ValueError if some parameters of `config` have no tensor.
  """
  specs_by_path = specs.flat_specs(config)
  covered = set()
  for tensor in format.tensor_maps:
    if not all(path in specs_by_path for path in tensor.paths):
      continue
    covered.update(tensor.paths)
    shapes = [specs_by_path[path].shape for path in tensor.paths]
    if '{i}' not in tensor.name:
      shape = tensor.op.shape(*shapes)
      yield [ExpectedTensor(tensor.name, shape, None, tensor)]
      continue
    shape = tensor.op.shape(*(s[1:] for s in shapes))
    yield [
      ExpectedTensor(tensor.name.format(i=i), shape, i, tensor)
      for i in range(config.num_layers)
    ]
  if covered != specs_by_path.keys():
    absent = sorted(specs_by_path.keys() - covered)
    raise ValueError(f'This format has no tensors for {absent}.')


def check(
  expected: Shapes,
  found: Shapes,
  where: str,
  ignored: Collection[str] = (),
  explain: Callable[[Shapes], str] = lambda found: '',
):
  """One ValueError for all missing and unexpected names and wrong shapes.

  where: what the error calls the tensors. ignored: regular expressions of names
  that need not be expected. The error ends with a table of all expected and
  found tensors, and with the text that explain(found) returns.
  """
  known = re.compile('|'.join(ignored) or '(?!)')
  found = {
    name: shape
    for name, shape in found.items()
    if name in expected or not known.fullmatch(name)
  }
  if found == expected:
    return
  lines = [f'{where} does not match its config:']

  def report(title, names, text):
    names = sorted(names)
    lines.extend(
      f'  {title} {name}: {text(name)}' for name in names[:_MAX_NAMES]
    )
    if len(names) > _MAX_NAMES:
      lines.append(f'  {title}: {len(names) - _MAX_NAMES} more')

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
    'wrong shape',
    (n for n in expected.keys() & found.keys() if expected[n] != found[n]),
    lambda n: f'expected {expected[n]}, found {found[n]}',
  )
  lines += [*_table(expected, found), explain(found)]
  raise ValueError('\n'.join(lines).rstrip())


def _table(expected: Shapes, found: Shapes) -> list[str]:
  """Columns of expected and found shapes; equal layers share a row."""
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
  rows = [('All tensors:', 'expected', 'found'), *rows]
  widths = [max(map(len, column)) for column in zip(*rows)]
  out = [
    '  '.join(map(str.ljust, row, widths)).rstrip() for row in rows[:_MAX_ROWS]
  ]
  more = len(rows) - _MAX_ROWS
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
