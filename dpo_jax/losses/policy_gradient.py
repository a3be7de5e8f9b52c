"""Policy gradients: rewards of tokens, advantages, and PPO's losses.

Pure functions over arrays of any float dtype; arithmetic and results are
float32. T here is the tokens of a completion, padded at the end: masks are true
(or 1) for a prefix of each row, which may be empty, and what lies behind it is
never read. All logs are natural: log-probabilities and KL are in nats. "TRL" is
TRL 1.12, the last with a PPO trainer, and TRL 1.16 for RLOO and GRPO.
"""

import jax
import jax.numpy as jnp

from dpo_jax import types
from dpo_jax.losses import inputs

float32 = inputs.float32


def _k1(logps: types.Array, reference_logps: types.Array) -> types.Array:
  """log p - log q: unbiased, negative for some tokens."""
  return float32(logps) - float32(reference_logps)


def _k3(logps: types.Array, reference_logps: types.Array) -> types.Array:
  """q / p - 1 - log(q / p): unbiased, never negative, lower variance."""
  difference = float32(reference_logps) - float32(logps)
  return jnp.expm1(difference) - difference


# Estimates of KL(p || q) for each token sampled from p, the policy, from its
# log-probabilities under p and under q, the reference; of any one shape.
# http://joschu.net/blog/kl-approx.html (Schulman, 2020). k3 is inf where the
# reference is e^89 times as likely. Means of their gradients are not gradients
# of the KL: those of k1 are 0, those of k3 the gradient of KL(q || p).
kl_estimates = {'k1': _k1, 'k3': _k3}


def token_rewards(
  scores_B: types.Array,
  kl_BxT: types.Array,
  mask_BxT: types.Array,
  *,
  kl_coefficient: float | types.Array,
) -> types.Array:
  """f32[B, T]: -kl_coefficient kl, plus the score at the last real token.

  Eq. 2, arXiv:1909.08593, token by token: without a discount they add up to
  score - kl_coefficient KL. 0 at padding; an empty row loses its score. TRL
  gives the score one position later where there is padding.
  """
  inputs.check_least_0(kl_coefficient=kl_coefficient)
  mask_BxT = jnp.asarray(mask_BxT, bool)
  last_B = jnp.sum(mask_BxT, axis=1) - 1
  is_last_BxT = jax.nn.one_hot(last_B, mask_BxT.shape[1], dtype=bool)
  penalty_BxT = jnp.where(mask_BxT, kl_coefficient * float32(kl_BxT), 0.0)
  return jnp.where(is_last_BxT, float32(scores_B)[:, None], 0.0) - penalty_BxT


def generalized_advantages(
  rewards_BxT: types.Array,
  values_BxT: types.Array,
  mask_BxT: types.Array,
  *,
  discount: float,
  gae_lambda: float,
) -> tuple[types.Array, types.Array]:
  """(advantages, returns), f32[B, T] each, 0 at padding.

  A_t = sum_l (discount gae_lambda)^l delta_{t+l}, where
  delta_t = r_t + discount V_{t+1} - V_t: Eq. 16, arXiv:1506.02438. Returns are
  A + V. V_t is the value before token t is chosen; after the last real token it
  is 0, whether the completion ended or was cut. TRL's is the value model's
  after a completion that ended, and 0 after one that was cut.
  """
  inputs.check_least_0(discount=discount, gae_lambda=gae_lambda)
  inputs.check_most_1(discount=discount, gae_lambda=gae_lambda)
  mask_BxT = jnp.asarray(mask_BxT, bool)
  rewards_BxT, values_BxT = (
    jnp.where(mask_BxT, float32(x), 0.0) for x in (rewards_BxT, values_BxT)
  )
  next_values_BxT = jnp.pad(values_BxT[:, 1:], ((0, 0), (0, 1)))
  deltas_BxT = rewards_BxT + discount * next_values_BxT - values_BxT

  def step(advantage_B, delta_B):
    advantage_B = delta_B + discount * gae_lambda * advantage_B
    return advantage_B, advantage_B

  # From the end: deltas of padding are 0, and so are its advantages.
  start_B = jnp.zeros(deltas_BxT.shape[0])
  _, advantages_TxB = jax.lax.scan(step, start_B, deltas_BxT.T, reverse=True)
  return advantages_TxB.T, advantages_TxB.T + values_BxT


def whiten(
  values_BxT: types.Array, mask_BxT: types.Array, *, shift_mean: bool = True
) -> types.Array:
  """f32[B, T]: (x - mean) / sqrt(variance + 1e-8) over all real entries.

  The variance is Bessel's, over n - 1, as in TRL's masked_whiten, and 0 for a
  single entry, where TRL raises. shift_mean=False adds the mean again,
  unscaled. 0 at padding.
  """
  mask_BxT = jnp.asarray(mask_BxT, bool)
  mean, variance = _mean_and_variance(values_BxT, mask_BxT)
  white_BxT = (float32(values_BxT) - mean) * jax.lax.rsqrt(variance + 1e-8)
  return jnp.where(mask_BxT, white_BxT if shift_mean else white_BxT + mean, 0.0)


def ppo_policy_loss(
  logps: types.Array,
  old_logps: types.Array,
  advantages: types.Array,
  *,
  clip: float,
) -> types.Array:
  """max(-A ratio, -A clip(ratio, 1 - clip, 1 + clip)), one for each token.

  ratio = exp(logps - old_logps): Eq. 7, arXiv:1707.06347, negated. Only `logps`
  is differentiated. Any one shape; `old_logps` are the sampler's.
  """
  inputs.check_positive(clip=clip)
  old_logps, advantages = _constants(old_logps, advantages)
  ratio = jnp.exp(float32(logps) - old_logps)
  clipped = jnp.clip(ratio, 1 - clip, 1 + clip)
  return jnp.maximum(-advantages * ratio, -advantages * clipped)


def ppo_value_loss(
  values: types.Array,
  old_values: types.Array,
  returns: types.Array,
  *,
  clip: float | None,
) -> types.Array:
  """max((V - R)^2, (clip(V, V_old - clip, V_old + clip) - R)^2) / 2 a token.

  TRL's, after OpenAI's baselines; not in PPO's paper. clip=None: (V - R)^2 / 2.
  Only `values` is differentiated. Any one shape.
  """
  values = float32(values)
  old_values, returns = _constants(old_values, returns)
  loss = jnp.square(values - returns)
  if clip is not None:
    inputs.check_positive(clip=clip)
    clipped = jnp.clip(values, old_values - clip, old_values + clip)
    loss = jnp.maximum(loss, jnp.square(clipped - returns))
  return 0.5 * loss


def adaptive_kl_coefficient(
  coefficient: float | types.Array,
  kl: float | types.Array,
  num_samples: int | types.Array,
  *,
  target: float,
  horizon: float,
) -> types.Array:
  """The coefficient after `num_samples` completions whose mean KL was `kl`.

  coefficient (1 + clip(kl / target - 1, -0.2, 0.2) num_samples / horizon):
  Sec. 2.2, arXiv:1909.08593, its K_beta being num_samples / horizon. `kl` and
  `target` are nats a completion, a sum over its tokens.
  """
  inputs.check_positive(target=target, horizon=horizon)
  error = jnp.clip(float32(kl) / target - 1, -0.2, 0.2)
  return float32(coefficient) * (1 + error * num_samples / horizon)


def leave_one_out(scores_BxK: types.Array) -> types.Array:
  """f32[B, K]: each score minus the mean of the other K - 1.

  RLOO's advantages, arXiv:2402.14740, from K >= 2 completions of each prompt.
  The baseline doesn't depend on its own completion: unbiased.
  """
  advantages_BxK, samples = _minus_mean(scores_BxK)
  return advantages_BxK * (samples / (samples - 1))


def group_relative(
  scores_BxK: types.Array, *, scale: bool = True
) -> types.Array:
  """f32[B, K]: (score - mean) / (standard deviation + 1e-4) of K >= 2.

  GRPO's advantages, Sec. 4.1.2, arXiv:2402.03300. The variance is over K - 1
  and 1e-4 is added as in TRL; the paper says neither. scale=False doesn't
  divide: Dr. GRPO, arXiv:2503.20783. A score is part of its own baseline, so
  that gradients are (K - 1) / K of the unbiased ones, and differently scaled
  for each prompt with `scale`.
  """
  advantages_BxK, samples = _minus_mean(scores_BxK)
  if not scale:
    return advantages_BxK
  squares_B = jnp.sum(jnp.square(advantages_BxK), axis=-1, keepdims=True)
  return advantages_BxK / (jnp.sqrt(squares_B / (samples - 1)) + 1e-4)


def explained_variance(
  values: types.Array, returns: types.Array, mask: types.Array
) -> types.Array:
  """Scalar 1 - Var(returns - values) / Var(returns) over the real entries.

  1 for perfect values, 0 for constant ones, below 0 for harmful ones; 0 where
  returns do not vary.
  """
  mask, returns = jnp.asarray(mask, bool), float32(returns)
  _, total = _mean_and_variance(returns, mask)
  _, residual = _mean_and_variance(returns - float32(values), mask)
  return jnp.where(total > 0, 1 - residual / jnp.where(total > 0, total, 1), 0)


def _mean_and_variance(values, mask):
  """Scalars over the real entries; the variance is over n - 1, 0 for n = 1."""
  values = jnp.where(mask, float32(values), 0.0)
  count = jnp.sum(mask)
  mean = jnp.sum(values) / jnp.maximum(count, 1)
  squares = jnp.where(mask, jnp.square(values - mean), 0.0)
  return mean, jnp.sum(squares) / jnp.maximum(count - 1, 1)


def _minus_mean(scores_BxK):
  """(scores minus the mean of their row, K); ValueError unless K >= 2."""
  samples = scores_BxK.shape[-1]
  if samples < 2:
    raise ValueError(
      f'scores are {list(scores_BxK.shape)}; expected [B, K] with K >= 2, as '
      'a completion is compared with others of its prompt.'
    )
  scores_BxK = float32(scores_BxK)
  return scores_BxK - jnp.mean(scores_BxK, -1, keepdims=True), samples


def _constants(*arrays):
  return (jax.lax.stop_gradient(float32(x)) for x in arrays)
