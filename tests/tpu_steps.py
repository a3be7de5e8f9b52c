"""Compiles the paper's train steps for a TPU slice; a line of JSON for each.

A process of its own: tests of other files have devices that JAX found, and two
processes that look for TPUs at once are in each other's way.
"""

import dataclasses
import importlib
import json

from dpo_jax import plan
from dpo_jax.models import presets
from dpo_jax.training import topologies

PAGES = {
  'imdb_sft': 'gpt2-large',
  'imdb_dpo': 'gpt2-large',
  'hh_sft': 'pythia-2.8b',
  'hh_dpo': 'pythia-2.8b',
  'tldr_sft': 'gpt-j-6b',
  'tldr_dpo': 'gpt-j-6b',
}


def narrow(shape: str):
  """The architecture of a preset, small enough to compile in seconds."""
  config = presets.get(shape)
  partial = config.rotary_dim is not None
  return dataclasses.replace(
    config,
    num_layers=2,
    d_model=128,
    num_heads=2,
    num_kv_heads=2,
    head_dim=64,
    d_ff=256,
    # Five blocks for the unembedding, and four for the embedding.
    vocab_size=1280,
    rotary_dim=16 if partial else None,
  )


def main():
  chips = topologies.devices('v5e:2x2')
  for page, shape in PAGES.items():
    config = importlib.import_module(f'configs.{page}').get_config().to_dict()
    # Of the page's, all but how long examples are.
    config['data'] |= dict(max_length=32, max_prompt_length=16)
    made = plan.make(config, narrow(shape), chips)
    result = made._asdict() | {'page': page, 'total': made.memory.total}
    result['memory'] = made.memory._asdict()
    result['collectives'] = [c._asdict() for c in made.collectives]
    print(json.dumps(result), flush=True)


if __name__ == '__main__':
  main()
