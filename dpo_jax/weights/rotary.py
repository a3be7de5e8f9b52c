"""Rotary positions as config files describe and tensors store them."""

from typing import Any

import numpy as np

from dpo_jax.models import config as model_config
from dpo_jax.weights import mapping

# Supported scalings: our field -> the field in config files.
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
# Fields of a config file that `collect` reads.
READS = ('rope_theta', 'rope_scaling', 'rope_parameters')


def collect(values: dict[str, Any]) -> dict[str, Any]:
  """The rope_parameters of `transformers` 5, or the same from older fields."""
  rope = {'rope_theta': values.get('rope_theta')}
  rope |= section(values, 'rope_scaling')
  rope |= section(values, 'rope_parameters')
  return {name: value for name, value in rope.items() if value is not None}


def section(values: dict[str, Any], name: str) -> dict[str, Any]:
  """The dict at `name`, {} if missing; ValueError if it is no dict."""
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
  """Our rope_theta and rope_scaling, from the result of `collect`.

  ValueError for unsupported scalings and, unless `partial`, for a
  partial_rotary_factor other than 1.
  """
  kind = rope.get('rope_type', rope.get('type', 'default'))
  mapping.require({'rope_type': kind}, {'rope_type': tuple(_FIELDS)})
  if not partial:
    mapping.require(rope, {'partial_rotary_factor': (None, 1)})
  scaling = None
  if kind != 'default':
    named = {
      ours: mapping.Field(name).read(rope)
      for ours, name in _FIELDS[kind].items()
    }
    scaling = model_config.RopeScaling(kind=kind, **named)
  theta = float(rope.get('rope_theta', default_theta))
  return {'rope_theta': theta, 'rope_scaling': scaling}


def write_scaling(scaling: model_config.RopeScaling | None):
  """The value of the config field rope_scaling."""
  if scaling is None:
    return None
  written = {'rope_type': scaling.kind}
  for ours, name in _FIELDS[scaling.kind].items():
    written[name] = getattr(scaling, ours)
  return written


def write(config: model_config.ModelConfig) -> dict[str, Any]:
  """rope_theta and rope_scaling, which all versions of `transformers` read."""
  scaling = write_scaling(config.rope_scaling)
  return {'rope_theta': config.rope_theta, 'rope_scaling': scaling}


def _by_head(x: np.ndarray, config: model_config.ModelConfig):
  """Rows by head: those that are rotated, [H, rotary_dim, ...], and others."""
  rotated = config.rotary_dim or config.head_dim
  heads = x.reshape(-1, config.head_dim, *x.shape[1:])
  return heads[:, :rotated], heads[:, rotated:]


def halves(x: np.ndarray, config: model_config.ModelConfig) -> np.ndarray:
  """Reorders each head's rows: adjacent pairs become two halves.

  The files pair rows (0, 1), (2, 3), ... of the rotated dimensions; our
  rotation pairs row i with row i + rotary_dim / 2.
  """
  rotated, rest = _by_head(x, config)
  parts = [rotated[:, 0::2], rotated[:, 1::2], rest]
  return np.concatenate(parts, axis=1).reshape(x.shape)


def neighbours(x: np.ndarray, config: model_config.ModelConfig) -> np.ndarray:
  """Inverts `halves`."""
  rotated, rest = _by_head(x, config)
  pairs = np.stack(np.split(rotated, 2, axis=1), axis=2)
  parts = [pairs.reshape(rotated.shape), rest]
  return np.concatenate(parts, axis=1).reshape(x.shape)


KERNEL = mapping.Op(
  lambda x, config: (halves(x, config).T,),
  lambda config, x: neighbours(x.T, config),
  lambda s: s[::-1],
)
BIAS = mapping.Op(
  lambda x, config: (halves(x, config),),
  lambda config, x: neighbours(x, config),
  lambda s: s,
)
