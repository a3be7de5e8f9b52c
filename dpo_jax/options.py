"""Which options a config page can have, with their types and defaults.

They are read from the signatures of the functions that the sections are bound
to, so an option that a function gains can be set at once.
"""

import difflib
import functools
import inspect
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from dpo_jax import data, losses, methods, models, registry, rewards, settings
from dpo_jax.data import batches, sources, token_rules
from dpo_jax.evals import reward_scores, samples
from dpo_jax.methods import scoring
from dpo_jax.training import checkpoints, launch, optimizers, run_log, sharding
from dpo_jax.training import step as steps_lib

Path = tuple[str, ...]
REQUIRED = inspect.Parameter.empty
# The losses that a method's option `loss` names.
LOSSES: dict[str, Mapping[str, Callable]] = {
  'dpo': losses.PREFERENCE_LOSSES,
  'kto': losses.UNPAIRED_LOSSES,
  'ranking': losses.RANKING_LOSSES,
  'reward_model': losses.REWARD_LOSSES,
}
# What other trainers call an option.
ELSEWHERE = {
  'gradient_accumulation_steps': 'step.accumulation_steps',
  'learning_rate': 'schedule.peak',
  'lr': 'schedule.peak',
  'max_steps': 'steps',
  'model_name_or_path': 'model.uri',
  'num_train_epochs': 'epochs',
}


class Option(NamedTuple):
  """One value of a page.

  choices: what the value can be where it decides which other options there
  are; None for all others.
  """

  annotation: Any = Any
  default: Any = REQUIRED
  choices: Collection[str] | None = None


class Section(NamedTuple):
  """Options under one name; `known(values)` are those beside these values.

  others: types that can stand in place of the section: NoneType, str.
  """

  known: Callable[[Mapping[str, Any]], 'Options']
  others: tuple[type, ...] = ()


Options = Mapping[str, Option | Section]


def of(*functions: Callable) -> dict[str, Option]:
  """The keyword-only parameters of functions."""
  return {
    name: Option(p.annotation, p.default)
    for fn in functions
    for name, p in registry.options_of(fn).items()
  }


def fixed(*functions: Callable, **more: Option) -> Section:
  """A section whose options do not depend on its values."""
  return Section(lambda values: of(*functions) | more)


def named(table: Mapping[str, Callable], *others: type) -> Section:
  """A section whose `name` is a key of `table`, with its options."""

  def known(values):
    fn = table.get(values.get('name'))
    options = {} if fn is None else of(fn)
    return {'name': Option(str, choices=table), **options}

  return Section(known, others)


def _method_options(values: Mapping[str, Any]) -> Options:
  options = named(methods.METHODS).known(values)
  table = LOSSES.get(values.get('name'), {})
  if 'loss' in options:
    options['loss'] = options['loss']._replace(choices=table)
    loss = table.get(values.get('loss', options['loss'].default))
    options |= {} if loss is None else of(loss)
  if 'reference' in options:
    options['reference'] = _reference_option(options['reference'], values)
    kind = scoring.REFERENCES.get(values.get('reference'))
    options['reference_options'] = _optional(kind)
  if 'divergence' in options:
    kind = values.get('divergence', options['divergence'].default)
    options['divergence_options'] = _optional(losses.DIVERGENCES.get(kind))
  return options


def _optional(fn: Callable | None) -> Section:
  """The options of a function, or None for the section."""
  return fixed(*[fn] * (fn is not None))._replace(others=(types.NoneType,))


def _reference_option(option: Option, values: Mapping[str, Any]) -> Option:
  """With 'none' as its only choice for a loss without a reference.

  Losses that are added may have one that the loss itself lacks.
  """
  if values.get('plus'):
    return option
  loss = losses.PREFERENCE_LOSSES.get(values.get('loss'))
  compares = loss is None or loss.properties.reference
  choices = [x for x in scoring.REFERENCES if (x != 'none') == compares]
  return option._replace(choices=choices)


def data_section(common: Mapping[str, Any] | None = None) -> Section:
  """A section of data; `common` holds values that it does not repeat."""

  def known(values):
    values = {**(common if isinstance(common, Mapping) else {}), **values}
    options = {'source': Option(str, choices=(*sources.SOURCES, data.MIXTURE))}
    if values.get('source') != data.MIXTURE:
      return options | _source_options(values)
    shared = {n: x for n, x in values.items() if n not in ('source', 'parts')}
    parts = {
      name: part
      for name, part in (values.get('parts') or {}).items()
      if 'source' in part
    }
    for part in parts.values():
      options |= _source_options({**shared, **part})
    return options | {
      'parts': Section(lambda _: dict.fromkeys(parts, _part_section(shared)))
    }

  return Section(known)


def _part_section(shared: Mapping[str, Any]) -> Section:
  """A part of a mixture."""
  section = data_section(shared)
  weight = {'weight': Option(float)}
  return Section(lambda values: section.known(values) | weight)


def _source_options(values: Mapping[str, Any]) -> Options:
  """Those of the source, the kind and the tokens; None leaves each out."""
  make = sources.SOURCES.get(values.get('source'))
  own = {} if make is None else of(make)
  kind = 'sft'
  if 'kind' in own:
    kind = values.get('kind') or own['kind'].default
    # A page says it for its method: another source's default is no reason to
    # drop it.
    own['kind'] = own['kind']._replace(default=None)
  found = {
    **own,
    **of(token_rules.resolve),
    **{n: Option(default=None) for n, k in data.OF_KINDS.items() if k == kind},
    **dict.fromkeys(data.OF_ALL, Option(bool, False)),
    'max_drop_fraction': Option(float, 0.01),
  }
  return {
    name: option._replace(annotation=option.annotation | None)
    for name, option in found.items()
  }


def page(
  sections: Callable[[Mapping[str, Any]], dict[str, Section]], *checks: Callable
) -> Section:
  """A whole page: the values and sections that `checks` take as keywords.

  sections(values of the page) -> those of them that are sections.
  """

  def known(values):
    options, found = of(*checks), sections(values)
    for name, section in found.items():
      optional = types.NoneType in typing.get_args(options[name].annotation)
      if optional:
        found[name] = section._replace(others=(*section.others, types.NoneType))
    return options | found

  return Section(known)


def sampling_sections(values: Mapping[str, Any]) -> dict[str, Section]:
  """Those of a page that samples."""
  del values
  dtype = of(models.Compute)['dtype']
  return {
    'model': fixed(uri=_OPTIONAL, tokenizer=_OPTIONAL, dtype=dtype),
    'mesh': fixed(sharding.make_mesh),
  }


def pairs_sections(values: Mapping[str, Any]) -> dict[str, Section]:
  """Those of a page that makes pairs."""
  return sampling_sections(values) | {
    'data': data_section(),
    'reward': named(rewards.REWARDS, str),
  }


def _training_sections(values: Mapping[str, Any]) -> dict[str, Section]:
  common, own = values.get('data'), values.get('train_data')
  uris = dict.fromkeys(('uri', 'tokenizer', 'reference'), _OPTIONAL)
  reward = named(rewards.REWARDS, str, types.NoneType)
  return {
    'model': fixed(models.Compute, **uris),
    # Where the page has no `data`, it may be given for what both sections have.
    'data': data_section(own),
    'train_data': data_section(common),
    'eval_data': data_section(common),
    'train_batches': fixed(batches.train_batches),
    'eval_batches': fixed(batches.eval_batches),
    'method': Section(_method_options),
    'optimizer': named(optimizers.OPTIMIZERS),
    'schedule': named(optimizers.SCHEDULES),
    'step': fixed(steps_lib.make_train_step),
    'mesh': fixed(sharding.make_mesh, offload_optimizer=Option(bool, False)),
    'checkpoints': fixed(checkpoints.open, every=Option(int)),
    'samples': Section(
      lambda _: (
        of(samples.build) | {'every': Option(int | None), 'reward': reward}
      )
    ),
    'log': fixed(run_log.make_log),
    'distributed': fixed(launch.start),
    'normalise': fixed(reward_scores.sampler),
  }


_OPTIONAL = Option(str | None, None)
TRAINING = page(_training_sections, settings.check)


def every(
  section: Section, values: Mapping[str, Any], path: Path = ()
) -> Iterator[tuple[Path, Any]]:
  """(path, value or the default) of all options that go with `values`."""
  for name, option in section.known(values).items():
    value = values.get(name)
    if isinstance(option, Section):
      inside = value if isinstance(value, Mapping) else {}
      if option.others and inside is not value:
        yield (*path, name), value
      if not isinstance(value, str):  # A name alone has no further options.
        yield from every(option, inside, (*path, name))
    else:
      yield (*path, name), values.get(name, option.default)


def unknown(
  section_path: Path,
  section: Section | None,
  name: str,
  top: Section,
  values: Mapping[str, Any],
) -> ValueError:
  """The error for an option that a page with these values does not take."""
  inside = values
  for part in section_path:
    inside = inside.get(part)
    inside = inside if isinstance(inside, Mapping) else {}
  known = section.known(inside) if section else {}
  path = '.'.join((*section_path, name))
  where = '.'.join(section_path)
  if section and not known:
    return ValueError(
      f'Unknown option {path!r}. {where} takes none beside the other values.'
    )
  hint = _taken_by(section_path, section, name, inside, known) or nearest(
    path, ['.'.join(p) for p, _ in every(top, values)]
  )
  names = ', '.join(sorted(known))
  known = f' Known{f" in {where}" if where else ""}: {names}.' if names else ''
  return ValueError(f'Unknown option {path!r}.{hint}{known}')


def _taken_by(path: Path, section, name: str, inside, known) -> str:
  """Which choices in the section take an option that it does not take."""
  for decider, option in known.items():
    found = [
      f'{".".join((*path, decider))}={choice}'
      for choice in getattr(option, 'choices', None) or ()
      if name in section.known({**inside, decider: choice})
    ]
    if found:
      return f' It is an option with {" or ".join(found[:3])}.'
  return ''


def _distance(name: str, other: str) -> float:
  """Of the sections of two options: 0 to 1."""
  sections = [x.rpartition('.')[0] for x in (name, other)]
  return 1 - difflib.SequenceMatcher(None, *sections).ratio()


def nearest(name: str, known: Sequence[str]) -> str:
  """' Did you mean ...?' for the most similar of the known options, or ''."""
  section, _, last = name.rpartition('.')
  by_last = {x.rpartition('.')[2]: x for x in reversed(known)}
  near = functools.partial(difflib.get_close_matches, n=1)
  same = [x for x in known if x.endswith(f'.{last}')]
  beside = [x for x in known if x.rpartition('.')[0] == section]
  found = (
    [x for x in [ELSEWHERE.get(last)] if x in known]
    or sorted(same, key=functools.partial(_distance, name))
    or near(name, beside, cutoff=0.7)
    or [by_last[x] for x in near(last, by_last, cutoff=0.7)]
    or near(name, known, cutoff=0.6)
  )
  return f' Did you mean {found[0]!r}?' if found else ''
