"""The inputs of objectives: float32 log-probabilities and checked options.

Every objective gets its arrays from here, so that arithmetic is float32 for
bfloat16 inputs too. Shapes are checked, and numbers that are known when an
objective is called; traced numbers (jit, vmap over beta) are not checked.
"""

import dataclasses
import math
import numbers

import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax import types

LogpsOf = types.PairLogps | types.UnpairedLogps | types.RankedLogps
# The fields with one number a completion; the others have one a loss.
_BY_COMPLETION = ('policy', 'reference', 'length')


def check_shapes(of: LogpsOf, container: type[LogpsOf]) -> None:
  """ValueError for another container, or for a field of another shape."""
  name = container.__name__
  if not isinstance(of, container):
    raise ValueError(
      f'This objective is of {name}; given: {type(of).__name__}.'
    )
  shape = np.shape(of.policy)
  wanted, fits = {
    types.PairLogps: ('[..., 2]', shape[-1:] == (2,)),
    types.UnpairedLogps: ('[...]', True),
    types.RankedLogps: ('[..., K]', shape[-1:] >= (1,)),
  }[container]
  if not fits:
    raise ValueError(f'{name}.policy is {list(shape)}; expected {wanted}.')
  each = shape if container is types.UnpairedLogps else shape[:-1]
  for field in dataclasses.fields(of):
    value = getattr(of, field.name)
    expected = shape if field.name in _BY_COMPLETION else each
    if value is not None and np.shape(value) != expected:
      raise ValueError(
        f'{name}.{field.name} is {list(np.shape(value))}; expected '
        f'{list(expected)}, as policy is {list(shape)}.'
      )


def reference(of: LogpsOf) -> types.Array:
  """The reference's log-probabilities, float32; ValueError without any."""
  if of.reference is None:
    raise ValueError(
      'This objective compares with a reference; expected its '
      'log-probabilities, got reference=None.'
    )
  return float32(of.reference)


def log_ratios(of: LogpsOf) -> types.Array:
  """log(policy / reference) of every completion, float32."""
  return float32(of.policy) - reference(of)


def pair_ratios(pairs: types.PairLogps) -> tuple[types.Array, types.Array]:
  """(a, b): the log-ratios of the preferred and the rejected answer."""
  ratios = log_ratios(pairs)
  return ratios[..., 0], ratios[..., 1]


def pair_sums(pairs: types.PairLogps) -> tuple[types.Array, types.Array]:
  """log pi(y_w) and log pi(y_l) of the policy, float32."""
  policy = float32(pairs.policy)
  return policy[..., 0], policy[..., 1]


def pair_lengths(pairs: types.PairLogps) -> tuple[types.Array, types.Array]:
  """(|y_w|, |y_l|) as float32 divisors, 1 for padding, which has no tokens."""
  length = jnp.maximum(float32(pairs.length), 1.0)
  return length[..., 0], length[..., 1]


def weights(of: types.PairLogps | types.UnpairedLogps) -> types.Array:
  """One float32 weight a loss; 1 where the container has no weights."""
  if of.weight is not None:
    return float32(of.weight)
  shape = of.policy.shape
  if isinstance(of, types.PairLogps):
    shape = shape[:-1]
  return jnp.ones(shape, jnp.float32)


def mean(values: types.Array, weight: types.Array) -> types.Array:
  """Scalar weighted mean; entries of weight 0 may be NaN. 0 without weights."""
  total = jnp.sum(weight)
  values = jnp.where(weight > 0, values * weight, 0.0)
  return jnp.sum(values) / jnp.where(total > 0, total, 1.0)


def float32(x) -> types.Array:
  return jnp.asarray(x).astype(jnp.float32)


def check_positive(**values) -> None:
  """ValueError for numbers that are not above 0."""
  for name, value in values.items():
    if _known(name, value) and not 0 < value < math.inf:
      raise ValueError(f'{name} is {value}; expected more than 0.')


def check_least_0(**values) -> None:
  """ValueError for numbers below 0."""
  for name, value in values.items():
    if _known(name, value) and not 0 <= value < math.inf:
      raise ValueError(f'{name} is {value}; expected 0 or more.')


def check_most_1(**values) -> None:
  """ValueError for numbers above 1."""
  for name, value in values.items():
    if _known(name, value) and not value <= 1:
      raise ValueError(f'{name} is {value}; expected 1 or less.')


def check_smoothing(label_smoothing, *, above_0: bool = False) -> None:
  """ValueError unless it is in [0, 0.5), or with `above_0` in (0, 0.5)."""
  if not _known('label_smoothing', label_smoothing):
    return
  if not 0 <= label_smoothing < 0.5 or (above_0 and label_smoothing == 0):
    relation = '<' if above_0 else '<='
    raise ValueError(
      f'label_smoothing is {label_smoothing}; expected 0 {relation} '
      'label_smoothing < 0.5, the probability that a label is flipped.'
    )


def _known(name: str, value) -> bool:
  """Whether the value is known now, not traced; ValueError for no number."""
  if isinstance(value, numbers.Real):
    return True
  if isinstance(value, jax.Array) or hasattr(value, 'dtype'):
    return False
  raise ValueError(f'{name} is {value!r}; expected a number.')
