"""docs/objectives.md taken apart: tables, equations, snippets."""

import ast
import inspect
import itertools
import pathlib
import re

import numpy as np

from tests.losses import closed_forms

PAGE = pathlib.Path(__file__).parents[1].joinpath('docs', 'objectives.md')
TEXT = PAGE.read_text('utf-8')
BLOCKS = re.findall(r'```python\n(.*?)```', TEXT, re.DOTALL)


def tables():
  """{second column's name: rows as {column: cell}}."""
  out = {}
  lines = [line.strip() for line in TEXT.splitlines()]
  for is_table, group in itertools.groupby(lines, lambda x: x.startswith('|')):
    if not is_table:
      continue
    head, _, *rows = [
      [cell.strip() for cell in line.strip('|').split('|')] for line in group
    ]
    assert all(len(row) == len(head) for row in rows), head
    out.setdefault(head[1], []).extend(dict(zip(head, row)) for row in rows)
  return out


def spans(cell):
  """What stands in backticks."""
  return re.findall(r'`([^`]+)`', cell)


def options(cell):
  """{option: default} of a cell such as '`beta`, `penalty=50.0`'."""
  out = {}
  for span in spans(cell):
    name, _, default = span.partition('=')
    out[name] = (
      ast.literal_eval(default) if default else inspect.Parameter.empty
    )
  return out


FUNCTIONS = {
  'σ': closed_forms.sigmoid,
  'logσ': lambda x: -np.logaddexp(0, -x),
  'logit': lambda p: np.log(p) - np.log1p(-p),
  'log': np.log,
  'exp': np.exp,
  'max': np.maximum,
  'sort': np.sort,
  'mean': np.mean,
}


def evaluate(equation, values):
  """An equation as the page writes it: 'β a' is a product, '^' a power."""
  text = equation.replace('log σ', 'logσ').replace('^', '**')
  out = []
  for token in re.findall(r'\d+\.?\d*|\w+|\*\*|\S', text):
    last = out[-1] if out else '('
    operand = re.match(r'[\w)]', last) and last not in FUNCTIONS
    if operand and re.match(r'[\w(]', token):
      out.append('*')
    out.append(token)
  names = {'__builtins__': {}, **FUNCTIONS, **values}
  return eval(''.join(out), names)


def variants(cell):
  """[(options, equation)] of "`x`; with normalise='tokens' `y`"."""
  found = re.findall(r"(?:with (\w+)='(\w+)' )?`([^`]+)`", cell)
  return [({name: value} if name else {}, eq) for name, value, eq in found]


def names(options):
  """How the page calls the options."""
  called = {'beta': 'β', 'label_smoothing': 'e'}
  return {called.get(name, name): value for name, value in options.items()}
