"""BCO's shift (arXiv:2404.04656): the running mean of the rewards.

The mean of two means, those of the desirable and of the undesirable completions
so far. Both are part of a Method's aux: a step uses them with its own batch
added, and keeps the result.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dpo_jax import types

# The metrics whose sums and counts a batch adds.
_CLASSES = ('rewards/chosen', 'rewards/rejected')


class RunningMeans(NamedTuple):
  """f32[2]: means of `count` rewards, desirable and undesirable."""

  mean: types.Array
  count: types.Array


def _empty() -> RunningMeans:
  return RunningMeans(jnp.zeros(2), jnp.zeros(2))


def _add(seen: RunningMeans, metrics: types.Metrics) -> RunningMeans:
  total, more = (
    jnp.stack([metrics[name][i] for name in _CLASSES]) for i in range(2)
  )
  count = seen.count + more
  change = (total - more * seen.mean) / jnp.maximum(count, 1.0)
  return RunningMeans(seen.mean + change, count)


def shift(seen: RunningMeans, metrics: types.Metrics) -> types.Array:
  """f32 scalar, not differentiated: with a batch of these metrics added."""
  seen = _add(seen, jax.lax.stop_gradient({k: metrics[k] for k in _CLASSES}))
  present = (seen.count > 0).astype(jnp.float32)
  return (seen.mean * present).sum() / jnp.maximum(present.sum(), 1.0)


def attach(method: types.Method) -> types.Method:
  """The method with RunningMeans as the aux that its objective reads.

  Its other functions get the aux that they had before.
  """

  def update(aux, params, metrics):
    return {
      'own': method.update(aux['own'], params, metrics),
      'rewards': _add(aux['rewards'], metrics),
    }

  return method._replace(
    annotate=lambda score, frozen, aux, batch: method.annotate(
      score, frozen, aux['own'], batch
    ),
    objective=lambda scores, batch, aux: method.objective(
      scores, batch, aux['rewards']
    ),
    update=update,
    init_aux=lambda reference: {
      'own': method.init_aux(reference),
      'rewards': _empty(),
    },
    coupled=True,
  )
