"""BCO's shift (arXiv:2404.04656): the mean reward of all that was seen so far.

Of desirable and of undesirable completions apart, each counting half. It is a
Method's aux: a step uses it with its own batch added, and then keeps it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dpo_jax import types

# The metrics whose sums and counts are what a batch adds.
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
  """f32, not differentiated: the shift with a batch of these metrics added."""
  seen = _add(seen, jax.lax.stop_gradient({k: metrics[k] for k in _CLASSES}))
  present = (seen.count > 0).astype(jnp.float32)
  return (seen.mean * present).sum() / jnp.maximum(present.sum(), 1.0)


def beside(method: types.Method) -> types.Method:
  """The method with RunningMeans for the aux that its objective reads.

  The aux that its other functions know stays theirs.
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
