"""Which layers are local, as config files say it."""

from collections.abc import Sequence
from typing import Any

from dpo_jax.models import config as model_config
from dpo_jax.weights import tables

_TYPES = {'full_attention': False, 'sliding_attention': True}


def read(
  values: dict[str, Any], default: Sequence[bool], window: int | None
) -> dict[str, Any]:
  """Our local_layers and window; `default`: where layer_types is absent."""
  types = values.get('layer_types')
  if types is not None:
    for name in types:
      tables.require({'layer_types': name}, {'layer_types': tuple(_TYPES)})
    default = [_TYPES[name] for name in types]
  return normal(default, window)


def normal(local: Sequence[bool], window: int | None) -> dict[str, Any]:
  """One way of saying it, so that equal models have equal configs."""
  if window is None or not any(local):
    return {'local_layers': (), 'window': None}
  return {'local_layers': tuple(map(bool, local)), 'window': window}


def every(num_layers: int, period: int) -> list[bool]:
  """All but the last of each `period` layers."""
  return [(i + 1) % period != 0 for i in range(num_layers)]


def types_of(config: model_config.ModelConfig) -> list[str]:
  """The value of layer_types."""
  names = {local: name for name, local in _TYPES.items()}
  local = config.local_layers or (False,) * config.num_layers
  return [names[x] for x in local]
