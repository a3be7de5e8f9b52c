"""Methods by name; each module reads like its paper."""

from collections.abc import Callable, Mapping
from typing import Any

from dpo_jax import registry, types
from dpo_jax.methods import dpo, kto, ranking, sft

# name -> fn(*, options) -> (policy -> Method)
METHODS = {
  'dpo': dpo.make,
  'kto': kto.make,
  'ranking': ranking.make,
  'sft': sft.make,
}


def build(
  section: Mapping[str, Any],
) -> Callable[[types.Policy], types.Method]:
  """The method that dict(name='dpo', ...) describes, for any policy.

  ValueError for an unknown name, option or value.
  """
  return registry.build(METHODS, section, 'method')()
