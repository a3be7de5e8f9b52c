"""Invalid configs are errors when they are constructed."""

import dataclasses

import pytest

from dpo_jax.models import config as model_config
from dpo_jax.models import decoder
from tests import forests

_LINEAR = model_config.RopeScaling(kind='linear', factor=2.0)


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'norm': 'batch'}, "norm is 'batch'; known:.*rms_offset"),
    ({'residual': 'none'}, "residual is 'none'.*parallel_one_norm"),
    ({'num_kv_heads': 3}, 'not a multiple of num_kv_heads 3'),
    ({'rotary_dim': 3}, 'rotary_dim is 3; expected an even number up to .* 8'),
    ({'rotary_dim': 10}, 'rotary_dim is 10'),
    ({'rotary_dim': 0}, 'rotary_dim is 0'),
    ({'local_layers': (True,)}, 'has 1 entries for 2 layers'),
    ({'window': 4}, 'window is 4, but no layer is local'),
    ({'local_rope_theta': 9.0}, 'local_rope_theta is 9.0, but'),
    ({'window': 0, 'local_layers': (True, False)}, 'window is 0'),
    (
      {'local_rope_scaling': _LINEAR, 'local_layers': (True, False)},
      'needs a local_rope_theta',
    ),
    (
      {'rope_scaling': model_config.RopeScaling(kind='yarn', factor=2.0)},
      "'yarn'; known: linear, llama3",
    ),
  ],
)
def test_errors(changes, words):
  with pytest.raises(ValueError, match=words):
    dataclasses.replace(forests.CONFIG, **changes)


def test_layers_that_differ_in_nothing_cost_nothing():
  """A window without effect is removed from the config."""
  local = dataclasses.replace(
    forests.CONFIG, local_layers=(True, False), window=10
  )
  assert decoder.without_idle_window(local, 10) == forests.CONFIG
  assert decoder.without_idle_window(local, 11) == local
