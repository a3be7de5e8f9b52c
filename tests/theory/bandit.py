"""A world small enough to enumerate: X prompts with K answers each.

The policy is a table of logits, one for each answer, so that it can be any
distribution with full support; what the papers say of populations is a sum.
Expected values are float64 NumPy and share no code with the objectives.
"""

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax import types
from dpo_jax.losses import inputs


class World(NamedTuple):
  """log pi_ref and rewards of the answers, f64[X, K], and the KL's price."""

  reference: np.ndarray
  reward: np.ndarray
  beta: float


def world(seed: int, *, prompts=2, answers=4, beta=0.5) -> World:
  rng = np.random.default_rng(seed)
  shape = (prompts, answers)
  return World(
    reference=log_softmax(rng.normal(size=shape)),
    reward=rng.normal(size=shape),
    beta=beta,
  )


def log_softmax(z: np.ndarray) -> np.ndarray:
  return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


def sigmoid(x) -> np.ndarray:
  return 1 / (1 + np.exp(-np.asarray(x)))


def logit(p) -> np.ndarray:
  return np.log(p) - np.log1p(-np.asarray(p))


def log_partition(w: World) -> np.ndarray:
  """log Z(x) of Eq. 4, f64[X]."""
  return np.log((np.exp(w.reference + w.reward / w.beta)).sum(axis=-1))


def optimum(w: World) -> np.ndarray:
  """log pi_r of Eq. 4, f64[X, K]."""
  return w.reference + w.reward / w.beta - log_partition(w)[:, None]


def bradley_terry(reward: np.ndarray) -> np.ndarray:
  """p*(y_i > y_j) of Eq. 1, f64[X, K, K]."""
  e = np.exp(reward)
  return e[:, :, None] / (e[:, :, None] + e[:, None, :])


def random_policy(seed: int, w: World) -> np.ndarray:
  """log-probs that have nothing to do with the world's, f64[X, K]."""
  rng = np.random.default_rng(seed)
  return log_softmax(2 * rng.normal(size=w.reference.shape))


def ordered_pairs(answers: int) -> np.ndarray:
  """Each (preferred, rejected), i64[P, 2]."""
  return np.array(list(itertools.permutations(range(answers), 2)))


def pair_logps(policy, reference, pairs: np.ndarray) -> types.PairLogps:
  """Those pairs of every prompt, [X * P, 2]; every answer is one token long."""
  return types.PairLogps(
    policy=jnp.asarray(policy)[:, pairs].reshape(-1, 2),
    reference=jnp.asarray(reference)[:, pairs].reshape(-1, 2),
    length=jnp.ones((len(policy) * len(pairs), 2), jnp.int32),
  )


def population_loss(
  loss_fn: Callable[[types.PairLogps], types.Array],
  reference: np.ndarray,
  preferred: np.ndarray,
  *,
  normalised: bool = True,
) -> Callable[[types.Array], types.Array]:
  """logits_XxK -> the sum over x and (y_w, y_l) of preferred * loss.

  preferred: f64[X, K, K], how often i is labelled the better of (i, j).
  normalised: else what is passed are log-probabilities that sum to anything.
  """
  pairs = ordered_pairs(reference.shape[-1])
  weight = jnp.asarray(preferred[:, pairs[:, 0], pairs[:, 1]].reshape(-1))

  def total(logits):
    logps = jax.nn.log_softmax(logits) if normalised else logits
    return jnp.sum(weight * loss_fn(pair_logps(logps, reference, pairs)))

  return total


def implicit_rewards(policy, reference, beta: float) -> np.ndarray:
  """beta log pi/pi_ref of every answer, as objectives read it, f[X, K]."""
  alone = np.stack([np.arange(policy.shape[-1])] * 2, axis=-1)
  pairs = pair_logps(policy, reference, alone)
  ratio, _ = inputs.pair_ratios(pairs)
  return beta * np.asarray(ratio).reshape(policy.shape)


def minimise(fn: Callable[[types.Array], types.Array], start) -> np.ndarray:
  """Where Newton's method comes to rest, with no slope above 1e-9.

  Curvature counts by its size, so that a saddle is left, and a step is halved
  until the value does not rise by more than rounding. Directions without
  curvature, such as a shift of all logits, are left alone. AssertionError if
  it does not come to rest.
  """
  expand = _expansion(fn)
  x = np.asarray(start, np.float64)
  value, gradient, curvature = expand(x)
  for _ in range(100):
    gradient = np.float64(gradient).reshape(-1)
    if np.abs(gradient).max() <= 1e-9:
      return x
    size, axes = np.linalg.eigh(np.float64(curvature).reshape(x.size, x.size))
    size = np.abs(size)
    bent = size > 1e-9 * size.max()
    along = np.where(bent, axes.T @ gradient, 0) / np.where(bent, size, 1)
    step = (axes @ along).reshape(x.shape)
    step /= max(1, np.abs(step).max() / 2)
    highest = value + 1e-12 * abs(value)
    while (expanded := expand(x - step))[0] > highest:
      step /= 2
    x, (value, gradient, curvature) = x - step, expanded
  raise AssertionError(f'Not at rest: the gradient is {gradient}.')


@functools.cache
def _expansion(fn):
  """x -> value, gradient and curvature of fn, compiled once."""
  return jax.jit(lambda x: (fn(x), jax.grad(fn)(x), jax.hessian(fn)(x)))
