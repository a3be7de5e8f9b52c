"""Which options a config page can have, with their types and defaults.

They are read from the signatures of the functions that the sections are bound
to, so an option that a function gains can be set at once.
"""

import difflib
import functools
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from dpo_jax import (
  data,
  judges,
  method_options,
  models,
  online_settings,
  option_types,
  rewards,
  settings,
)
from dpo_jax.data import batches, sources, token_rules
from dpo_jax.evals import reward_scores, samples
from dpo_jax.methods import collection
from dpo_jax.training import checkpoints, launch, optimizers, run_log, sharding
from dpo_jax.training import step as steps_lib

# What other trainers call an option.
ELSEWHERE = {
  'gradient_accumulation_steps': 'step.accumulation_steps',
  'learning_rate': 'schedule.peak',
  'lr': 'schedule.peak',
  'max_steps': 'steps',
  'model_name_or_path': 'model.uri',
  'num_train_epochs': 'epochs',
}


def data_section(
  common: Mapping[str, Any] | None = None,
) -> option_types.Section:
  """A section of data; `common` holds values that it does not repeat."""

  def known(values):
    values = {**(common if isinstance(common, Mapping) else {}), **values}
    options = {
      'source': option_types.Option(
        str, choices=(*sources.SOURCES, data.MIXTURE)
      )
    }
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
      'parts': option_types.Section(
        lambda _: dict.fromkeys(parts, _part_section(shared))
      )
    }

  return option_types.Section(known)


def _part_section(shared: Mapping[str, Any]) -> option_types.Section:
  """A part of a mixture."""
  section = data_section(shared)
  weight = {'weight': option_types.Option(float)}
  return option_types.Section(lambda values: section.known(values) | weight)


def _source_options(values: Mapping[str, Any]) -> option_types.Options:
  """Those of the source, the kind and the tokens; None leaves each out."""
  make = sources.SOURCES.get(values.get('source'))
  own = {} if make is None else option_types.of(make)
  kind = 'sft'
  if 'kind' in own:
    kind = values.get('kind') or own['kind'].default
    # A page says it for its method: another source's default is no reason to
    # drop it.
    own['kind'] = own['kind']._replace(default=None)
  found = {
    **own,
    **option_types.of(token_rules.resolve),
    **{
      n: option_types.Option(default=None)
      for n, k in data.OF_KINDS.items()
      if k == kind
    },
    **dict.fromkeys(data.OF_ALL, option_types.Option(bool, False)),
    'max_drop_fraction': option_types.Option(float, 0.01),
  }
  return {
    name: option._replace(annotation=option.annotation | None)
    for name, option in found.items()
  }


def page(
  sections: Callable[[Mapping[str, Any]], dict[str, option_types.Section]],
  *checks: Callable,
) -> option_types.Section:
  """A whole page: the values and sections that `checks` take as keywords.

  sections(values of the page) -> those of them that are sections.
  """

  def known(values):
    options, found = option_types.of(*checks), sections(values)
    for name, section in found.items():
      optional = types.NoneType in typing.get_args(options[name].annotation)
      if optional:
        found[name] = section._replace(others=(*section.others, types.NoneType))
    return options | found

  return option_types.Section(known)


def sampling_sections(
  values: Mapping[str, Any],
) -> dict[str, option_types.Section]:
  """Those of a page that samples."""
  del values
  dtype = option_types.of(models.Compute)['dtype']
  return {
    'model': option_types.fixed(
      uri=_OPTIONAL, tokenizer=_OPTIONAL, dtype=dtype
    ),
    'mesh': option_types.fixed(sharding.make_mesh),
    'reward': option_types.named(rewards.REWARDS, str),
  }


def pairs_sections(
  values: Mapping[str, Any],
) -> dict[str, option_types.Section]:
  """Those of a page that makes pairs."""
  return sampling_sections(values) | {
    'data': data_section(),
  }


def judge_sections(
  values: Mapping[str, Any],
) -> dict[str, option_types.Section]:
  """Those of a page that judges."""
  del values
  return {
    'data': data_section(),
    'judge': option_types.named(judges.JUDGES),
    'mesh': option_types.fixed(sharding.make_mesh),
  }


def _training_sections(
  values: Mapping[str, Any],
) -> dict[str, option_types.Section]:
  common, own = values.get('data'), values.get('train_data')
  uris = dict.fromkeys(('uri', 'tokenizer', 'reference'), _OPTIONAL)
  reward = option_types.named(rewards.REWARDS, str, types.NoneType)
  return {
    'model': option_types.fixed(models.Compute, **uris),
    # Where the page has no `data`, it may be given for what both sections have.
    'data': data_section(own),
    'train_data': data_section(common),
    'eval_data': data_section(common),
    'train_batches': option_types.fixed(batches.train_batches),
    'eval_batches': option_types.fixed(batches.eval_batches),
    'method': option_types.Section(method_options.of_method),
    'optimizer': option_types.named(optimizers.OPTIMIZERS),
    'schedule': option_types.named(optimizers.SCHEDULES),
    'step': option_types.fixed(steps_lib.make_train_step),
    'mesh': option_types.fixed(
      sharding.make_mesh, offload_optimizer=option_types.Option(bool, False)
    ),
    'checkpoints': option_types.fixed(
      checkpoints.open, every=option_types.Option(int)
    ),
    'samples': option_types.Section(
      lambda _: (
        option_types.of(samples.build)
        | {'every': option_types.Option(int | None), 'reward': reward}
      )
    ),
    'log': option_types.fixed(run_log.make_log),
    'distributed': option_types.fixed(launch.start),
    'normalise': option_types.fixed(reward_scores.sampler),
  }


def _online_sections(
  values: Mapping[str, Any],
) -> dict[str, option_types.Section]:
  """Those of a page with rollouts."""
  found = _training_sections(values)
  for name in ('train_batches', 'eval_batches', 'normalise'):
    del found[name]
  return found | {
    'method': option_types.Section(method_options.of_online_method),
    'rollouts': option_types.fixed(collection.Schedule),
    'reward': option_types.named(rewards.REWARDS, str),
    'preference': option_types.fixed(rewards.preference_function)._replace(
      others=(str,)
    ),
    'value': option_types.fixed(online_settings.value_settings),
  }


_OPTIONAL = option_types.Option(str | None, None)
_OFFLINE = page(_training_sections, settings.check)
_ONLINE = page(_online_sections, online_settings.check)
TRAINING = option_types.Section(
  lambda values: (
    _ONLINE if values.get('rollouts') is not None else _OFFLINE
  ).known(values)
)


def every(
  section: option_types.Section,
  values: Mapping[str, Any],
  path: option_types.Path = (),
) -> Iterator[tuple[option_types.Path, Any]]:
  """(path, value or the default) of all options that go with `values`."""
  for name, option in section.known(values).items():
    value = values.get(name)
    if isinstance(option, option_types.Section):
      inside = value if isinstance(value, Mapping) else {}
      if option.others and inside is not value:
        yield (*path, name), value
      if not isinstance(value, str):  # A name alone has no further options.
        yield from every(option, inside, (*path, name))
    else:
      yield (*path, name), values.get(name, option.default)


def unknown(
  section_path: option_types.Path,
  section: option_types.Section | None,
  name: str,
  top: option_types.Section,
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


def _taken_by(
  path: option_types.Path, section, name: str, inside, known
) -> str:
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
