"""Renders chat templates with Jinja as `transformers` does.

Templates come with downloaded checkpoints, so they run in a sandbox. Blocks,
filters and globals are those that `transformers` defines.
"""

import datetime
import functools
import json
import re
from collections.abc import Mapping
from typing import Any

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.sandbox

# Markers written around the content of {% generation %} to find its place.
_OPEN, _CLOSE = '\x02[generation\x03', '\x02generation]\x03'
_TAG = re.compile(r'\{%[-+]?\s*generation\b')


class _Generation(jinja2.ext.Extension):
  """{% generation %}, around the assistant's text; renders its content."""

  tags = frozenset({'generation'})

  def parse(self, parser):
    line = next(parser.stream).lineno
    body = parser.parse_statements(('name:endgeneration',), drop_needle=True)
    call = self.call_method('mark')
    return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

  def mark(self, caller) -> str:
    text = caller()
    return f'{_OPEN}{text}{_CLOSE}' if self.environment.marks else text


def _raise_exception(message: str):
  raise jinja2.TemplateError(message)


def _tojson(x, ensure_ascii=False, indent=None, separators=None, **options):
  # Instead of Jinja's own filter, which escapes HTML.
  return json.dumps(
    x,
    ensure_ascii=ensure_ascii,
    indent=indent,
    separators=separators,
    **options,
  )


def _strftime_now(format: str) -> str:
  return datetime.datetime.now().strftime(format)


@functools.lru_cache(maxsize=32)
def _compile(template: str, marks: bool) -> jinja2.Template:
  environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True,
    lstrip_blocks=True,
    extensions=[_Generation, jinja2.ext.loopcontrols],
  )
  environment.marks = marks
  environment.filters['tojson'] = _tojson
  environment.globals['raise_exception'] = _raise_exception
  environment.globals['strftime_now'] = _strftime_now
  return environment.from_string(template)


@functools.lru_cache(maxsize=32)
def variables(template: str) -> frozenset[str]:
  """The names of the variables that a template reads; ValueError if invalid."""
  try:
    environment = _compile(template, False).environment
    nodes = environment.parse(template)
  except jinja2.TemplateError as error:
    raise ValueError(f'The chat template is invalid: {error}') from error
  return frozenset(jinja2.meta.find_undeclared_variables(nodes))


def render(
  template: str, values: Mapping[str, Any], *, marks: bool = False
) -> str:
  """Renders `template`; ValueError if the template or the sandbox raises."""
  try:
    compiled = _compile(template, marks)
    return compiled.render({'tools': None, 'documents': None} | dict(values))
  except Exception as error:  # A template is foreign code: it can raise any.
    raise ValueError(
      f'The chat template failed: {type(error).__name__}: {error}'
    ) from error


def render_marked(
  template: str, values: Mapping[str, Any]
) -> tuple[str, list[tuple[int, int]]] | None:
  """The text, and the [begin, end) of each {% generation %} block in it.

  None for a template without such blocks.
  """
  if not _TAG.search(template):
    return None
  first, *rest = render(template, values, marks=True).split(_OPEN)
  text, spans = first, []
  for part in rest:
    inside, _, outside = part.partition(_CLOSE)
    spans.append((len(text), len(text) + len(inside)))
    text += inside + outside
  return text, [span for span in spans if span[0] < span[1]]
