"""Pairwise objectives that couple the pairs of a batch.

Containers, notation and results as in `preference`. All pairs with a weight
above 0 are coupled, over all leading axes; the loss of the others is 0.
"""

import jax
import jax.numpy as jnp

from dpo_jax import types
from dpo_jax.losses import inputs
from dpo_jax.losses.loss_properties import preference_loss


@preference_loss(reference=True, sums=True, coupled=True)
def bco(
  pairs: types.PairLogps, *, beta: float, shift: types.Array | None = None
) -> types.Array:
  """BCO of pairs, arXiv:2404.04656.

  -log sigma(beta a - shift) - log sigma(-(beta b - shift)). shift: a scalar,
  such as a running mean; None for `bco_shift` of this batch. Constant in the
  gradient. TRL's 'bco_pair' has none.
  """
  inputs.check_positive(beta=beta)
  if shift is None:
    shift = bco_shift(pairs, beta=beta)
  shift = jax.lax.stop_gradient(shift)
  a, b = inputs.pair_ratios(pairs)
  loss = -jax.nn.log_sigmoid(beta * a - shift)
  loss -= jax.nn.log_sigmoid(shift - beta * b)
  return jnp.where(inputs.weights(pairs) > 0, loss, 0.0)


def bco_shift(pairs: types.PairLogps, *, beta: float) -> types.Array:
  """BCO's reward shift: the mean of both answers' rewards, f32 scalar."""
  a, b = inputs.pair_ratios(pairs)
  return inputs.mean(beta * (a + b) / 2, inputs.weights(pairs))


@preference_loss(reference=True, sums=True, coupled=True)
def aot(pairs: types.PairLogps, *, beta: float) -> types.Array:
  """AOT of pairs, arXiv:2406.05882.

  -log sigma(beta (u_(i) - v_(i))): u = log pi(y_w) - log pi(y_l) and v the
  same of the reference, each sorted over the batch. A pair's loss is that of
  its rank in u. TRL sorts each process's micro-batch.
  """
  inputs.check_positive(beta=beta)
  u, v = (
    logps[..., 0] - logps[..., 1]
    for logps in (inputs.float32(pairs.policy), inputs.reference(pairs))
  )
  return _transport(u, v, inputs.weights(pairs), beta)


@preference_loss(reference=True, sums=True, coupled=True)
def aot_unpaired(pairs: types.PairLogps, *, beta: float) -> types.Array:
  """AOT without pairs, -log sigma(beta (a_(i) - b_(i))): arXiv:2406.05882.

  a and b each sorted over the batch. A pair's loss is that of its rank in a.
  """
  inputs.check_positive(beta=beta)
  a, b = inputs.pair_ratios(pairs)
  return _transport(a, b, inputs.weights(pairs), beta)


def _transport(u, v, weight, beta):
  """-log sigma(beta (u_i - v_j)) at i, where v_j has the rank of u_i."""
  shape, real = u.shape, weight.ravel() > 0
  # Padding: finite where gradients flow, and sorted behind all real pairs.
  u, v = (jnp.where(real, x.ravel(), 0.0) for x in (u, v))
  order_u, order_v = (
    jnp.argsort(jnp.where(real, x, jnp.inf), stable=True) for x in (u, v)
  )
  rank_u = jnp.argsort(order_u)
  partner = v[order_v][rank_u]
  loss = -jax.nn.log_sigmoid(beta * (u - partner))
  return jnp.where(real, loss, 0.0).reshape(shape)
