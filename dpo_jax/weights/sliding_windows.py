"""Which layers have a sliding window, as config files describe it."""

from collections.abc import Sequence
from typing import Any

from dpo_jax.models import config as model_config
from dpo_jax.weights import mapping

_TYPES = {'full_attention': False, 'sliding_attention': True}


def read(
  values: dict[str, Any], default: Sequence[bool], window: int | None
) -> dict[str, Any]:
  """Our local_layers and window.

  default: which layers are local if the file has no layer_types.
  """
  types = values.get('layer_types')
  if types is not None:
    for name in types:
      mapping.require({'layer_types': name}, {'layer_types': tuple(_TYPES)})
    default = [_TYPES[name] for name in types]
  return normal(default, window)


def normal(local: Sequence[bool], window: int | None) -> dict[str, Any]:
  """local_layers and window in one normal form.

  Models that compute the same get equal configs.
  """
  if window is None or not any(local):
    return {'local_layers': (), 'window': None}
  return {'local_layers': tuple(map(bool, local)), 'window': window}


def every(num_layers: int, period: int) -> list[bool]:
  """Flags that are True for all but the last of each `period` layers."""
  return [(i + 1) % period != 0 for i in range(num_layers)]


def types_of(config: model_config.ModelConfig) -> list[str]:
  """The value of the config field layer_types."""
  names = {local: name for name, local in _TYPES.items()}
  local = config.local_layers or (False,) * config.num_layers
  return [names[x] for x in local]
