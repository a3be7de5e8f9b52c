"""From tokens to completions: how token log-probabilities are combined."""

from collections.abc import Callable

import jax.numpy as jnp

from dpo_jax import registry, types
from dpo_jax.losses import inputs, logprobs

# (logps_RxN, token_weight_RxN or None, batch) -> f32[R, E, K], a number for
# each completion of each example.
Length = Callable[..., types.Array]


def sums(values_RxN: types.Array, batch: types.Batch) -> types.Array:
  """Sums over the tokens of each example's completions, f32[R, E, K]."""
  return of_slots(logprobs.slot_sums(values_RxN, batch), batch)


def lengths(batch: types.Batch) -> types.Array:
  """Numbers of scored tokens of each example's completions, i32[R, E, K]."""
  return of_slots(batch.slot_length_RxS, batch)


def of_slots(values_RxS: types.Array, batch: types.Batch) -> types.Array:
  """Per-slot values of each example's completions, [R, E, K]."""
  return logprobs.example_slots(values_RxS, batch)


def total(values_P: types.Array, weight_P: types.Array) -> types.Array:
  """The weighted sum; a value of weight 0 adds nothing, even if it is NaN."""
  return jnp.where(weight_P > 0, values_P * weight_P, 0.0).sum()


def make_length(name: str, *, ld_alpha: float | None) -> Length:
  """How a completion's tokens are combined; name: a key of `LENGTHS`."""
  options = {} if ld_alpha is None else {'ld_alpha': ld_alpha}
  make = registry.lookup(LENGTHS, name, 'length')
  return registry.bind(make, options, f'length {name!r}')()


def _sum():
  """log p of the completion, for which every objective is derived."""

  def length(logps_RxN, weight_RxN, batch):
    return sums(_weighted(logps_RxN, weight_RxN), batch)

  return length


def _mean():
  """Weighted mean of log p over the tokens (arXiv:2312.00849)."""

  def length(logps_RxN, weight_RxN, batch):
    ones = jnp.ones_like(logps_RxN)
    total = sums(_weighted(logps_RxN, weight_RxN), batch)
    return total / jnp.maximum(sums(_weighted(ones, weight_RxN), batch), 1e-9)

  return length


def _ld(*, ld_alpha: float):
  """LD-DPO (arXiv:2409.06411): the excess of the longer completion counts less.

  Tokens beyond the length of the shortest completion of their example have the
  weight ld_alpha: 1 gives sums, 0 compares equally many tokens.
  """
  inputs.check_least_0(ld_alpha=ld_alpha)
  inputs.check_most_1(ld_alpha=ld_alpha)

  def length(logps_RxN, weight_RxN, batch):
    values_RxN = _weighted(logps_RxN, weight_RxN) * batch.score_weight_RxN
    public_RxE = lengths(batch).min(axis=-1)
    offset_RxN = _offsets(batch)
    slots_RxExK = batch.example_slots_RxExK
    owned = batch.score_slot_RxN[:, :, None, None] == slots_RxExK[:, None]
    inside = offset_RxN[:, :, None] < public_RxE[:, None]
    share_RxNxE = jnp.where(inside, 1.0, ld_alpha)
    return jnp.einsum(
      'rnek,rne,rn->rek',
      owned.astype(jnp.float32),
      share_RxNxE,
      values_RxN,
      precision='highest',
    )

  return length


LENGTHS = {'sum': _sum, 'mean': _mean, 'ld': _ld}


def _weighted(values_RxN, weight_RxN):
  return values_RxN if weight_RxN is None else values_RxN * weight_RxN


def _offsets(batch: types.Batch) -> types.Array:
  """i32[R, N]: the number of scored tokens before each in its completion."""
  slots = jnp.arange(batch.slot_last_RxS.shape[1])[None, None]
  owner_RxNxS = (batch.score_slot_RxN[..., None] == slots) & (
    batch.score_weight_RxN[..., None] > 0
  )
  before_RxNxS = jnp.cumsum(owner_RxNxS, axis=1) - 1
  return jnp.take_along_axis(
    before_RxNxS, batch.score_slot_RxN[..., None], axis=-1
  )[..., 0]
