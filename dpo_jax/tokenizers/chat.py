"""Chat templates, in the environment that their authors test them in.

Templates come with downloaded checkpoints, hence the sandbox. Blocks, filters
and globals are those of `transformers`.
"""

import datetime
import functools
import json

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox


class _Generation(jinja2.ext.Extension):
  """{% generation %}: marks the assistant's words; renders what it holds."""

  tags = frozenset({'generation'})

  def parse(self, parser):
    next(parser.stream)
    return parser.parse_statements(('name:endgeneration',), drop_needle=True)


def _raise_exception(message: str):
  raise jinja2.TemplateError(message)


def _tojson(x, ensure_ascii=False, indent=None, separators=None, **options):
  # Jinja's own filter escapes HTML.
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
def _compile(template: str) -> jinja2.Template:
  environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True,
    lstrip_blocks=True,
    extensions=[_Generation, jinja2.ext.loopcontrols],
  )
  environment.filters['tojson'] = _tojson
  environment.globals['raise_exception'] = _raise_exception
  environment.globals['strftime_now'] = _strftime_now
  return environment.from_string(template)


def render(template: str, **variables) -> str:
  """Renders `template`; ValueError where it, or the sandbox, refuses."""
  try:
    return _compile(template).render(**variables)
  except jinja2.TemplateError as error:
    raise ValueError(f'The chat template failed: {error}') from error
