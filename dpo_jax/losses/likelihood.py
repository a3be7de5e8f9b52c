"""Pairwise objectives without a reference: of the policy's likelihoods alone.

Containers, notation and results as in `preference`; s_w and s_l are the sums
log pi(y_w) and log pi(y_l). `pairs.reference` is not read.
"""

import jax
import jax.numpy as jnp

from dpo_jax import registry, types
from dpo_jax.losses import inputs
from dpo_jax.losses.loss_properties import preference_loss

# ORPO clips mean log-probabilities here, as a probability of 1 has no odds.
_ALMOST_CERTAIN = -1e-7


def _per_token(pairs):
  """Mean log-probabilities of a token: s_w / |y_w| and s_l / |y_l|."""
  (s_w, s_l), (n_w, n_l) = inputs.pair_sums(pairs), inputs.pair_lengths(pairs)
  return s_w / n_w, s_l / n_l


def _target_chosen(pairs):
  return inputs.pair_sums(pairs)[0]


def _target_answer(pairs):
  if pairs.target is None:
    raise ValueError(
      "slic with target='answer' needs the log-probability of a reference "
      'answer; got target=None.'
    )
  return inputs.float32(pairs.target)


_TARGETS = {'chosen': _target_chosen, 'answer': _target_answer}


@preference_loss(reference=False, sums=True)
def slic(
  pairs: types.PairLogps,
  *,
  delta: float = 1.0,
  target_weight: float = 0.1,
  target: str = 'chosen',
) -> types.Array:
  """SLiC-HF, max(0, delta - s_w + s_l) - target_weight log pi(y_target).

  arXiv:2305.10425. target: 'chosen' is y_w; 'answer' is a third answer, the
  reference answer (`pairs.target`). HALOs mixes sums over sequences and means
  over tokens here; TRL has only RSO's hinge.
  """
  inputs.check_least_0(delta=delta, target_weight=target_weight)
  s_w, s_l = inputs.pair_sums(pairs)
  s_target = registry.lookup(_TARGETS, target, 'target')(pairs)
  return jax.nn.relu(delta - s_w + s_l) - target_weight * s_target


@preference_loss(reference=False)
def simpo(
  pairs: types.PairLogps, *, beta: float, gamma: float = 0.5
) -> types.Array:
  """SimPO, -log sigma(beta s_w / |y_w| - beta s_l / |y_l| - gamma).

  Eq. 6, arXiv:2405.14734. TRL's, in its CPO trainer, is the same, but adds a
  likelihood term by default.
  """
  inputs.check_positive(beta=beta)
  inputs.check_least_0(gamma=gamma)
  mean_w, mean_l = _per_token(pairs)
  return -jax.nn.log_sigmoid(beta * (mean_w - mean_l) - gamma)


@preference_loss(reference=False)
def orpo(pairs: types.PairLogps, *, beta: float) -> types.Array:
  """ORPO, -s_w / |y_w| - beta log sigma(log odds(y_w) - log odds(y_l)).

  arXiv:2403.07691: odds = P / (1 - P) with P = exp(s / |y|), and beta is its
  lambda. P is clipped to exp(-1e-7), as P = 1 has no odds. TRL's likelihood
  term is over prompt and answer, a mean over the tokens of a batch.
  """
  inputs.check_positive(beta=beta)
  mean_w, mean_l = _per_token(pairs)
  log_odds_ratio = _log_odds(mean_w) - _log_odds(mean_l)
  return -mean_w - beta * jax.nn.log_sigmoid(log_odds_ratio)


def _log_odds(logp):
  """log(P / (1 - P)) of P = exp(logp)."""
  x = jnp.minimum(logp, _ALMOST_CERTAIN)
  return x - _log1mexp(x)


def _log1mexp(x):
  """log(1 - exp(x)) for x < 0, by the form that is exact at x.

  Both branches of a `where` are differentiated, so each gets an argument from
  its own range.
  """
  near = x > -jnp.log(2.0)
  from_0 = jnp.log(-jnp.expm1(jnp.where(near, x, -1.0)))
  from_1 = jnp.log1p(-jnp.exp(jnp.where(near, -1.0, x)))
  return jnp.where(near, from_0, from_1)


@preference_loss(reference=False, sums=True)
def cpo(
  pairs: types.PairLogps, *, beta: float, likelihood_weight: float = 1.0
) -> types.Array:
  """CPO, -log sigma(beta (s_w - s_l)) - likelihood_weight s_w.

  arXiv:2401.08417, where the weight is 1. TRL's likelihood term is a mean over
  the answer tokens of a batch.
  """
  inputs.check_positive(beta=beta)
  inputs.check_least_0(likelihood_weight=likelihood_weight)
  s_w, s_l = inputs.pair_sums(pairs)
  return -jax.nn.log_sigmoid(beta * (s_w - s_l)) - likelihood_weight * s_w


@preference_loss(reference=False, sums=True)
def unlikelihood(pairs: types.PairLogps, *, alpha: float = 0.1) -> types.Array:
  """Unlikelihood as the DPO paper's baseline, -s_w + alpha s_l.

  Section 6, arXiv:2305.18290: log pi(y_w) up, log pi(y_l) down, alpha in
  [0, 1]. Not bounded below. Not in TRL; not the token-wise log(1 - p) of
  arXiv:1908.04319.
  """
  inputs.check_least_0(alpha=alpha)
  inputs.check_most_1(alpha=alpha)
  s_w, s_l = inputs.pair_sums(pairs)
  return -s_w + alpha * s_l


def _nll(pairs):
  return -inputs.pair_sums(pairs)[0]


def _nll_per_token(pairs):
  return -_per_token(pairs)[0]


_NLLS = {'sums': _nll, 'tokens': _nll_per_token}


@preference_loss(reference=False, sums=True)
def preferred_ft(
  pairs: types.PairLogps, *, normalise: str = 'sums'
) -> types.Array:
  """Fine-tuning on the preferred answer, -s_w: section 6, arXiv:2305.18290.

  normalise: 'sums', or 'tokens' for -s_w / |y_w|. TRL's 'sft' is a mean over
  the tokens of a batch, so that long answers weigh more.
  """
  return registry.lookup(_NLLS, normalise, 'normalise')(pairs)
