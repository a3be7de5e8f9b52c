"""Objectives of K ranked completions: `types.RankedLogps` to float32 losses."""

from dpo_jax import types
from dpo_jax.losses import inputs, reward
from dpo_jax.losses.loss_properties import ranking_loss


@ranking_loss(reference=True, ratios=True, sums=True)
def plackett_luce(ranked: types.RankedLogps, *, beta: float) -> types.Array:
  """Plackett-Luce DPO, -sum_k (r_k - logsumexp_{j >= k} r_j).

  Eq. 20, arXiv:2305.18290; r = beta log(policy / reference), best first. With
  two completions it is DPO. Not in TRL.
  """
  inputs.check_positive(beta=beta)
  return reward.plackett_luce(beta * inputs.log_ratios(ranked))
