import math

import jax
import pytest

from dpo_jax.models import presets, specs

# As the publishers count them, a tied embedding once.
_COUNTS = {
  'gpt2': 124_439_808,
  'gpt2-large': 774_030_080,
  'Llama-3-8B': 8_030_261_248,
  'SmolLM2-135M': 134_515_008,
}


def test_every_preset_has_a_published_count():
  assert presets.PRESETS.keys() == _COUNTS.keys()


@pytest.mark.parametrize('name', presets.PRESETS)
def test_parameter_count(name):
  config = presets.get(name)
  params = jax.eval_shape(
    lambda key: specs.init(key, config), jax.random.key(0)
  )
  leaves = jax.tree.leaves(params)
  assert sum(math.prod(leaf.shape) for leaf in leaves) == _COUNTS[name]
  assert specs.num_params(config) == _COUNTS[name]


def test_unknown_preset_is_answered_with_the_closest():
  with pytest.raises(ValueError, match=r"'gpt-2'.*mean 'gpt2'"):
    presets.get('gpt-2')
