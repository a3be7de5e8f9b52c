"""Objectives of single completions that are desirable or undesirable.

Each takes a `types.UnpairedLogps` (any leading axes) and keyword-only
hyperparameters and returns unreduced float32 losses, one per completion.
Completions of weight 0 are padding: their loss is 0. r is
log(policy / reference).
"""

import jax
import jax.numpy as jnp

from dpo_jax import types
from dpo_jax.losses import inputs
from dpo_jax.losses.loss_properties import unpaired_loss

# The `class_weight_ratio` that KTO's authors recommend (arXiv:2402.01306);
# TRL's documentation says up to 4/3.
CLASS_WEIGHT_RANGE = (1.0, 1.5)


@unpaired_loss(reference=True, sums=True, coupled=True, mismatched=True)
def kto(
  unpaired: types.UnpairedLogps,
  *,
  beta: float,
  desirable_weight: float = 1.0,
  undesirable_weight: float = 1.0,
) -> types.Array:
  """KTO, arXiv:2402.01306.

  Desirable: desirable_weight (1 - sigma(beta (r - z0))). Undesirable:
  undesirable_weight (1 - sigma(beta (z0 - r))). z0 is `kto_baseline`, constant
  in the gradient. TRL and HALOs take z0 from the completions of a micro-batch,
  rolled by one, so that it depends on the order of the data.
  """
  inputs.check_positive(
    beta=beta,
    desirable_weight=desirable_weight,
    undesirable_weight=undesirable_weight,
  )
  z0 = jax.lax.stop_gradient(kto_baseline(unpaired))
  gain = beta * (inputs.log_ratios(unpaired) - z0)
  return _by_class(
    unpaired,
    desirable_weight * jax.nn.sigmoid(-gain),
    undesirable_weight * jax.nn.sigmoid(gain),
  )


def kto_baseline(unpaired: types.UnpairedLogps) -> types.Array:
  """z0, f32 scalar: max(weighted mean of `mismatched`, 0), an estimate of
  KL(policy || reference)."""
  if unpaired.mismatched is None:
    raise ValueError(
      'KTO needs the log-ratios of mismatched completions; got mismatched=None.'
    )
  mismatched = inputs.float32(unpaired.mismatched)
  return jnp.maximum(inputs.mean(mismatched, inputs.weights(unpaired)), 0.0)


@unpaired_loss(reference=True, sums=True, coupled=True)
def bco(
  unpaired: types.UnpairedLogps,
  *,
  beta: float,
  shift: types.Array | None = None,
  desirable_weight: float = 1.0,
  undesirable_weight: float = 1.0,
) -> types.Array:
  """BCO, arXiv:2404.04656.

  Desirable: -log sigma(beta r - shift). Undesirable: -log sigma(shift - beta
  r). Each times its class's weight. shift: a scalar, such as a running mean;
  None for `bco_shift` of this batch. Constant in the gradient.
  """
  inputs.check_positive(
    beta=beta,
    desirable_weight=desirable_weight,
    undesirable_weight=undesirable_weight,
  )
  if shift is None:
    shift = bco_shift(unpaired, beta=beta)
  logit = beta * inputs.log_ratios(unpaired) - jax.lax.stop_gradient(shift)
  return _by_class(
    unpaired,
    -desirable_weight * jax.nn.log_sigmoid(logit),
    -undesirable_weight * jax.nn.log_sigmoid(-logit),
  )


def bco_shift(unpaired: types.UnpairedLogps, *, beta: float) -> types.Array:
  """BCO's reward shift, f32 scalar: (mean reward of the desirable + that of
  the undesirable) / 2; the mean reward if there is only one class."""
  rewards = beta * inputs.log_ratios(unpaired)
  weight, desirable = inputs.weights(unpaired), _desirable(unpaired)
  classes = [jnp.where(desirable, weight, 0), jnp.where(desirable, 0, weight)]
  means = jnp.stack([inputs.mean(rewards, w) for w in classes])
  present = jnp.stack([jnp.sum(w) > 0 for w in classes])
  return inputs.mean(means, present.astype(jnp.float32))


def class_weight_ratio(
  *,
  desirable_weight: float,
  undesirable_weight: float,
  num_desirable: int,
  num_undesirable: int,
) -> float:
  """lambda_D n_D / (lambda_U n_U), recommended to be in CLASS_WEIGHT_RANGE.

  ValueError where a class is empty: one class alone teaches nothing.
  """
  if num_desirable < 1 or num_undesirable < 1:
    raise ValueError(
      f'There are {num_desirable} desirable and {num_undesirable} undesirable '
      'completions; expected some of each.'
    )
  inputs.check_positive(
    desirable_weight=desirable_weight, undesirable_weight=undesirable_weight
  )
  return (desirable_weight * num_desirable) / (
    undesirable_weight * num_undesirable
  )


def _desirable(unpaired):
  return jnp.asarray(unpaired.label) > 0


def _by_class(unpaired, desirable, undesirable):
  loss = jnp.where(_desirable(unpaired), desirable, undesirable)
  return jnp.where(inputs.weights(unpaired) > 0, loss, 0.0)
