"""Published sizes give the published numbers of parameters."""

import math

import jax
import pytest
import torch
import transformers

from dpo_jax.models import presets, specs
from dpo_jax.weights import families

# As the publishers count them, a tied embedding once.
_COUNTS = {
  'gpt2': 124_439_808,
  'gpt2-large': 774_030_080,
  'gpt-j-6b': 6_050_882_784,
  'pythia-2.8b': 2_775_208_960,
  'Llama-3-8B': 8_030_261_248,
  'Llama-3.2-1B': 1_235_814_400,
  'Mistral-7B': 7_241_732_096,
  'Qwen2.5-0.5B': 494_032_768,
  'Qwen3-0.6B': 596_049_920,
  'gemma-2-2b': 2_614_341_888,
  'gemma-3-270m': 268_098_176,
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


@pytest.mark.parametrize('name', presets.PRESETS)
def test_transformers_counts_the_same(name):
  """By the config.json that the preset is written as."""
  family, values = families.of_config(presets.get(name))
  config = transformers.AutoConfig.for_model(family.name, **values)
  with torch.device('meta'):
    peer = transformers.AutoModelForCausalLM.from_config(config)
  assert type(peer).__name__ == family.architecture
  assert sum(p.numel() for p in peer.parameters()) == _COUNTS[name]


def test_unknown_preset_is_answered_with_the_closest():
  with pytest.raises(ValueError, match=r"'gpt-2'.*mean 'gpt2'"):
    presets.get('gpt-2')
