"""Random log-probabilities, and gradients with respect to the policy's."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax import registry, types


def random_pairs(seed=0, shape=(7,), scale=3.0, **fields):
  """PairLogps with a reference, a target and random lengths."""
  rng = np.random.default_rng(seed)

  def logps(*axes):
    return jnp.asarray(-20 + scale * rng.normal(size=axes), jnp.float32)

  return types.PairLogps(
    policy=logps(*shape, 2),
    reference=logps(*shape, 2),
    length=jnp.asarray(rng.integers(5, 30, size=(*shape, 2)), jnp.int32),
    target=logps(*shape),
  ).replace(**fields)


def pairs_at(policy, reference=0.0, length=1):
  """PairLogps of given numbers, one pair or several."""
  policy = jnp.asarray(policy, jnp.float32).reshape(-1, 2)
  return types.PairLogps(
    policy=policy,
    reference=jnp.broadcast_to(jnp.float32(reference), policy.shape),
    length=jnp.full(policy.shape, length, jnp.int32),
    target=jnp.zeros(len(policy)),
  )


def gradient(fn, logps, weight=None):
  """d(sum of the weighted losses)/d(log-probs of the policy)."""

  def total(policy):
    losses = fn(logps.replace(policy=policy))
    return (losses if weight is None else losses * weight).sum()

  return jax.grad(total)(logps.policy)


def demanded(fn, **values):
  """Those of `values` that `fn` takes and has no default for."""
  return {
    name: values[name]
    for name, option in registry.options_of(fn).items()
    if option.default is inspect.Parameter.empty
  }
