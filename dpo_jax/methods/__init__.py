"""Methods by name; each module reads like its paper."""

from collections.abc import Callable, Mapping
from typing import Any

from dpo_jax import registry, types
from dpo_jax.methods import (
  dpo,
  kto,
  online_dpo,
  online_method,
  ppo,
  ranking,
  reward_model,
  sft,
)

# name -> fn(*, options) -> (policy -> Method)
METHODS = {
  'dpo': dpo.make,
  'kto': kto.make,
  'ranking': ranking.make,
  'reward_model': reward_model.make,
  'sft': sft.make,
}

# name -> fn(*, options) -> OnlineBuilder: methods on rollouts of the policy
ONLINE_METHODS = {
  'online_dpo': online_dpo.make,
  'ppo': ppo.make,
}


# Those whose model has a scalar head; the models of others have logits.
SCALAR = ('reward_model',)


def build(
  section: Mapping[str, Any],
) -> Callable[[types.Policy], types.Method]:
  """The method that dict(name='dpo', ...) describes, for any policy.

  ValueError for an unknown name, option or value.
  """
  if section.get('name') in ONLINE_METHODS:
    raise ValueError(
      f'The method {section["name"]!r} trains on samples of the policy: the '
      'page needs sections `rollouts` and `reward`, as configs/ppo.py has.'
    )
  return registry.build(METHODS, section, 'method')()


def refuse_rollouts(page: Mapping[str, Any]) -> None:
  """ValueError for a page of an online method, which train.py alone runs."""
  if page.get('rollouts') is not None:
    raise ValueError(
      'The page has the section `rollouts`: dpo_jax.train alone runs it, and '
      'there are no batches of records to plan for or to evaluate on. To '
      'evaluate what it has trained, give a page of another method as --config '
      'and the run as --model.'
    )
  if (page.get('method') or {}).get('name') in ONLINE_METHODS:
    build(page['method'])  # Its error, before those of other sections.


def build_online(section: Mapping[str, Any]) -> online_method.OnlineBuilder:
  """The online method that dict(name='ppo', ...) describes.

  ValueError for an unknown name, option or value.
  """
  if section.get('name') in METHODS:
    raise ValueError(
      f'The method {section["name"]!r} trains on records, but the page has the '
      f'section `rollouts`, which is for {" or ".join(sorted(ONLINE_METHODS))}.'
    )
  return registry.build(ONLINE_METHODS, section, 'method on rollouts')()


def has_reference(section: Mapping[str, Any]) -> bool:
  """Whether what a section describes compares with a reference."""
  nothing = types.Policy(None, None)  # Enough to read a method's properties.
  if section['name'] not in ONLINE_METHODS:
    return build(section)(nothing).reference != 'none'
  online = build_online(section).build(nothing, None)
  return online.score is not None or online.method.reference != 'none'


def head(section: Mapping[str, Any]) -> str:
  """The `ModelConfig.head` of the models that a method trains."""
  return 'scalar' if section['name'] in SCALAR else 'logits'


def check_beside(section: Mapping[str, Any], samples, normalise) -> None:
  """ValueError for sections that are of models with the other head."""
  if head(section) == 'scalar' and samples is not None:
    raise ValueError(
      'A reward model has no samples: set samples=None, or samples.every=None.'
    )
  if head(section) == 'logits' and normalise is not None:
    raise ValueError(
      f'normalise is of reward models; method {section["name"]!r} trains none.'
    )
