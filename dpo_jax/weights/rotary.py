"""Rotary positions as checkpoints describe and store them."""

from typing import Any

import numpy as np

from dpo_jax.models import config as model_config
from dpo_jax.weights import tables

# Theirs by ours, of the scalings that are supported.
_FIELDS = {
  'default': {},
  'linear': {'factor': 'factor'},
  'llama3': {
    'factor': 'factor',
    'low_freq_factor': 'low_freq_factor',
    'high_freq_factor': 'high_freq_factor',
    'original_max_positions': 'original_max_position_embeddings',
  },
}
# What `read` takes from a config file.
READS = ('rope_theta', 'rope_scaling', 'rope_parameters')


def collect(values: dict[str, Any]) -> dict[str, Any]:
  """`transformers` 5's rope_parameters, or the same from older fields."""
  rope = {'rope_theta': values.get('rope_theta')}
  rope |= section(values, 'rope_scaling')
  rope |= section(values, 'rope_parameters')
  return {name: value for name, value in rope.items() if value is not None}


def section(values: dict[str, Any], name: str) -> dict[str, Any]:
  """The fields below `name`, {} if absent; ValueError if there are none."""
  found = values.get(name)
  if not isinstance(found, dict | None):
    raise ValueError(
      f'{name} is {found!r}; expected fields such as '
      "{'rope_type': 'linear', 'factor': 2.0}, or null."
    )
  return found or {}


def read(
  rope: dict[str, Any], default_theta: float, *, partial: bool = False
) -> dict[str, Any]:
  """Our rope_theta and rope_scaling, of what `collect` returns.

  ValueError for unsupported scalings and, unless `partial`, for heads that are
  rotated in part.
  """
  kind = rope.get('rope_type', rope.get('type', 'default'))
  tables.require({'rope_type': kind}, {'rope_type': tuple(_FIELDS)})
  if not partial:
    tables.require(rope, {'partial_rotary_factor': (None, 1)})
  scaling = None
  if kind != 'default':
    named = {
      ours: tables.Field(theirs).read(rope)
      for ours, theirs in _FIELDS[kind].items()
    }
    scaling = model_config.RopeScaling(kind=kind, **named)
  theta = float(rope.get('rope_theta', default_theta))
  return {'rope_theta': theta, 'rope_scaling': scaling}


def write_scaling(scaling: model_config.RopeScaling | None):
  """The value of rope_scaling, which every reader knows."""
  if scaling is None:
    return None
  written = {'rope_type': scaling.kind}
  for ours, theirs in _FIELDS[scaling.kind].items():
    written[theirs] = getattr(scaling, ours)
  return written


def write(config: model_config.ModelConfig) -> dict[str, Any]:
  """The older two fields: every reader knows them, `transformers` 5 too."""
  scaling = write_scaling(config.rope_scaling)
  return {'rope_theta': config.rope_theta, 'rope_scaling': scaling}


def _by_head(x: np.ndarray, config: model_config.ModelConfig):
  """Rows of heads, [heads, rotated] and [heads, the rest]."""
  rotated = config.rotary_dim or config.head_dim
  heads = x.reshape(-1, config.head_dim, *x.shape[1:])
  return heads[:, :rotated], heads[:, rotated:]


def halves(x: np.ndarray, config: model_config.ModelConfig) -> np.ndarray:
  """Rows of heads for a rotation of halves, from one of neighbours."""
  rotated, rest = _by_head(x, config)
  parts = [rotated[:, 0::2], rotated[:, 1::2], rest]
  return np.concatenate(parts, axis=1).reshape(x.shape)


def neighbours(x: np.ndarray, config: model_config.ModelConfig) -> np.ndarray:
  """Inverts `halves`."""
  rotated, rest = _by_head(x, config)
  pairs = np.stack(np.split(rotated, 2, axis=1), axis=2)
  parts = [pairs.reshape(rotated.shape), rest]
  return np.concatenate(parts, axis=1).reshape(x.shape)


KERNEL = tables.Op(
  lambda x, config: (halves(x, config).T,),
  lambda config, x: neighbours(x.T, config),
  lambda s: s[::-1],
)
BIAS = tables.Op(
  lambda x, config: (halves(x, config),),
  lambda config, x: neighbours(x, config),
  lambda s: s,
)
