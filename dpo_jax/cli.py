"""The command line of the entry points: a config page, overrides and flags.

--config names a page (see pages.py), --config.SECTION.OPTION=VALUE, or
--config.SECTION.OPTION VALUE, sets one of its options, and everything else is
absl's flags. What is wrong with any of them is one line on stderr.
"""

import contextlib
import pathlib
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

from absl import app, flags, logging

from dpo_jax import option_types, options, overrides, pages, registry

_HELP = ('--help', '-help', '--helpshort', '-h', '-?')
_PACKAGE = str(pathlib.Path(__file__).parent)

# The flag that is defined here is shown with those of the entry point.
flags.disclaim_key_flags()


def run(
  main: Callable[..., Any],
  top: option_types.Section | None = None,
  *,
  default: Callable[[], Any] | None = None,
  optional: bool = False,
) -> NoReturn:
  """Runs main(argv, page); argv: the program's name and its arguments.

  The page's config is a dict, with what the command line sets. top: the options
  that a page can have; where it is None there is no --config, and it is
  main(argv). default: makes the config where --config is not given; optional:
  the page may be None then.
  """
  given = {}
  if top is not None:
    flags.DEFINE_string(
      'config', None, 'A config page: a file, or the name of one of dpo_jax.'
    )

  def parse(argv):
    with one_line_errors():
      try:
        argv = flags.FLAGS.read_flags_from_files(argv, force_gnu=False)
        if top is None:
          return flags.FLAGS(argv)
        argv, found = split(argv)
        given.update(found)
        return _parse(argv, given, top)
      except flags.UnrecognizedFlagError as error:
        sys.exit(_unknown_flag(error.flagname, argv, top))
      except flags.Error as error:
        sys.exit(str(error))

  def start(argv):
    with one_line_errors():
      if top is None:
        return main(argv)
      name = flags.FLAGS.config
      if name is not None:
        return main(argv, _changed(pages.load(name), given, top))
      if default is not None:
        return main(argv, _changed(pages.Page('', default()), given, top))
      if not optional:
        raise ValueError(
          'Which page? Give --config, a file or one of: '
          f'{", ".join(pages.shipped())}.'
        )
      if given:
        raise ValueError(
          f'--config.{next(iter(given))} is an option of a page: give --config.'
        )
      return main(argv, None)

  app.run(start, flags_parser=parse)


def split(argv: list[str]) -> tuple[list[str], dict[str, str]]:
  """(argv without overrides, {'a.b': text} of each --config.a.b).

  ValueError for one without a value.
  """
  rest, given = [], {}
  words = iter(argv)
  for word in words:
    match = re.fullmatch(r'--?config\.([^=]+)(=.*)?', word, re.DOTALL)
    if word == '--':
      rest += [word, *words]
    elif match is None:
      rest.append(word)
    else:
      name, value = match.groups()
      value = next(words, '--') if value is None else value[1:]
      if value.startswith('--') and f'--config.{name}' == word:
        raise ValueError(f'--config.{name} has no value: --config.{name}=VALUE')
      given[name] = value
  return rest, given


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
  """Ends the program with the message alone of errors that explain themselves.

  Those are files that are missing or in the way, and ValueErrors that dpo_jax
  raises; a library's ValueError keeps its traceback.
  """
  try:
    yield
  except (FileNotFoundError, FileExistsError) as error:
    sys.exit(str(error))
  except ValueError as error:
    raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
    if not raised_in.startswith(_PACKAGE):
      raise
    sys.exit(str(error))


def _changed(
  page: pages.Page, given: Mapping[str, str], top: option_types.Section
) -> pages.Page:
  config, dropped = overrides.apply(page.config, given, top)
  if dropped:
    logging.warning(
      'These values of the page are replaced or ruled out by the command line: '
      '%s.',
      ', '.join(dropped),
    )
  return page._replace(config=config)


def _parse(
  argv: list[str], given: Mapping[str, str], top: option_types.Section
) -> list[str]:
  """The arguments that are no flags; with --config and --help, no return."""
  asked = [word for word in argv if word in _HELP]
  named = any(re.fullmatch(r'--?config(=.*)?', word) for word in argv)
  if not asked or not named:
    return flags.FLAGS(argv)
  flags.FLAGS([word for word in argv if word not in asked])
  page = pages.load(flags.FLAGS.config)
  config, _ = overrides.apply(page.config, given, top)
  print(f'Options of {flags.FLAGS.config}, each --config.OPTION=VALUE:\n')
  # Where both data sections stand alone, `data` says what is given for both.
  shared = 'data' in config or 'train_data' not in config
  unshown = ('train_data', 'eval_data') if shared else ('data',)
  for path, value in options.every(top, config):
    value = '(required)' if value is option_types.REQUIRED else repr(value)
    if path[0] not in unshown:
      print(f'  {".".join(path)} = {value}')
  for name in unshown:
    if name in config:
      print(f'  {name}: those of data, which it overrides by {config[name]}')
  sys.exit(0)


def _unknown_flag(
  name: str, argv: list[str], top: option_types.Section | None
) -> str:
  """The error for a flag that the entry point does not have."""
  known = flags.FLAGS.get_key_flags_for_module(sys.argv[0])
  known = sorted(f'--{flag.name}' for flag in known)
  hint = registry.closest(f'--{name}', known)
  if not hint and top is not None:
    with contextlib.suppress(ValueError, flags.Error):
      flags.FLAGS(argv, known_only=True)
      page = pages.load(flags.FLAGS.config).config
      config, _ = overrides.apply(page, {}, top)
      names = ['.'.join(path) for path, _ in options.every(top, config)]
      hint = options.nearest(name, names)
      hint = hint.replace("mean '", "mean '--config.")
  return f'Unknown flag --{name}.{hint} Known: {", ".join(known)}.'
