"""The families of checkpoints that can be read and written."""

import dataclasses
from typing import Any

from dpo_jax import registry
from dpo_jax.models import config as model_config
from dpo_jax.weights import gpt2, llama, tables

FAMILIES = {f.name: f for f in (llama.FAMILY, gpt2.FAMILY)}


def of_name(name: Any, what: str) -> tables.Family:
  """The family `name`; ValueError with the closest one if unknown."""
  return registry.lookup(FAMILIES, str(name), what)


def of_config(
  config: model_config.ModelConfig,
) -> tuple[tables.Family, dict[str, Any]]:
  """A family whose config.json can say all of `config`, and what it says."""
  reasons = []
  for family in FAMILIES.values():
    try:
      values = tables.write_config(family.hf, config)
      read = tables.read_config(family.hf, values)
    except ValueError as error:
      reasons.append(f'{family.name}: {error}')
      continue
    differing = [
      f'{f.name} = {getattr(config, f.name)!r} (it means '
      f'{getattr(read, f.name)!r})'
      for f in dataclasses.fields(config)
      if getattr(config, f.name) != getattr(read, f.name)
    ]
    if not differing:
      return family, values
    reasons.append(f'{family.name}: {", ".join(differing)}')
  raise ValueError(
    'No family of checkpoints can express this config. ' + '; '.join(reasons)
  )
