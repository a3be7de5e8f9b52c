"""Objectives of K ranked completions: `types.RankedLogps` to float32 losses."""

import jax
import jax.numpy as jnp

from dpo_jax import types
from dpo_jax.losses import inputs
from dpo_jax.losses.loss_properties import ranking_loss


@ranking_loss(reference=True, ratios=True, sums=True)
def plackett_luce(ranked: types.RankedLogps, *, beta: float) -> types.Array:
  """Plackett-Luce DPO, -sum_k (r_k - logsumexp_{j >= k} r_j).

  Eq. 20, arXiv:2305.18290; r = beta log(policy / reference), best first. With
  two completions it is DPO. Not in TRL.
  """
  inputs.check_positive(beta=beta)
  rewards = beta * inputs.log_ratios(ranked)
  later = jnp.triu(jnp.ones((rewards.shape[-1],) * 2, bool))
  later = jnp.broadcast_to(later, (*rewards.shape, rewards.shape[-1]))
  rest = jax.nn.logsumexp(rewards[..., None, :], axis=-1, where=later)
  return jnp.sum(rest - rewards, axis=-1)
