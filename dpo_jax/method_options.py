"""The options of the section `method`, which depend on its values."""

import types
from collections.abc import Callable, Mapping
from typing import Any

from dpo_jax import losses, methods, option_types
from dpo_jax.methods import advantages, scoring

# The losses that a method's option `loss` names.
LOSSES: dict[str, Mapping[str, Callable]] = {
  'dpo': losses.PREFERENCE_LOSSES,
  'kto': losses.UNPAIRED_LOSSES,
  'ranking': losses.RANKING_LOSSES,
  'reward_model': losses.REWARD_LOSSES,
}


def of_online_method(values: Mapping[str, Any]) -> option_types.Options:
  name = values.get('name')
  own = option_types.named(methods.ONLINE_METHODS).known(values)
  if name == 'online_dpo':
    return of_method({**values, 'name': 'dpo'}) | own
  if 'advantage' in own:
    table = advantages.ADVANTAGES
    own['advantage'] = own['advantage']._replace(choices=table)
    chosen = table.get(values.get('advantage', own['advantage'].default))
    own |= {} if chosen is None else option_types.of(chosen)
  return own


def of_method(values: Mapping[str, Any]) -> option_types.Options:
  options = option_types.named(methods.METHODS).known(values)
  table = LOSSES.get(values.get('name'), {})
  if 'loss' in options:
    options['loss'] = options['loss']._replace(choices=table)
    loss = table.get(values.get('loss', options['loss'].default))
    options |= {} if loss is None else option_types.of(loss)
  if 'reference' in options:
    options['reference'] = _reference_option(options['reference'], values)
    kind = scoring.REFERENCES.get(values.get('reference'))
    options['reference_options'] = _optional(kind)
  if 'divergence' in options:
    kind = values.get('divergence', options['divergence'].default)
    options['divergence_options'] = _optional(losses.DIVERGENCES.get(kind))
  return options


def _optional(fn: Callable | None) -> option_types.Section:
  """The options of a function, or None for the section."""
  return option_types.fixed(*[fn] * (fn is not None))._replace(
    others=(types.NoneType,)
  )


def _reference_option(
  option: option_types.Option, values: Mapping[str, Any]
) -> option_types.Option:
  """With 'none' as its only choice for a loss without a reference.

  Losses that are added may have one that the loss itself lacks.
  """
  if values.get('plus'):
    return option
  loss = losses.PREFERENCE_LOSSES.get(values.get('loss'))
  compares = loss is None or loss.properties.reference
  choices = [x for x in scoring.REFERENCES if (x != 'none') == compares]
  return option._replace(choices=choices)
