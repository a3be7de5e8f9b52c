"""PPO's quantities as TRL 1.12 defines them, and where ours are others.

TRL's last PPO trainer is that of 1.12 (trl/experimental/ppo/ppo_trainer.py).
Its formulas are inside of its training loop, so they are written out here in
PyTorch. Its losses: tests/losses/ppo_losses_test.py. The controller of the KL
coefficient is TRL 0.11's, the last to have one.
"""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from dpo_jax.losses import policy_gradient

B, T = 6, 7
OPTIONS = dict(discount=1.0, gae_lambda=0.95)
# Of full length, which TRL takes as cut, and shorter ones.
LENGTHS = np.array([7, 7, 7, 4, 1, 6])


def _masked_whiten(values, mask, shift_mean=True):
  mean = values[mask].mean()
  centred = values - mean
  variance = (centred[mask] ** 2).mean() * mask.sum() / (mask.sum() - 1)
  white = centred * torch.rsqrt(variance + 1e-8)
  return white if shift_mean else white + mean


def _theirs(rollouts, kl_coefficient, estimator, discount, gae_lambda):
  """(advantages, whitened advantages, returns) by TRL's PPO trainer.

  Values are there for one position after the last token, where there is one,
  and that position has the score.
  """
  lengths, scores, logps, reference, values = map(torch.tensor, rollouts)
  position = torch.arange(T)[None]
  last = lengths[:, None] - 1
  real, with_end = position <= last, position <= last + 1
  log_ratio = torch.where(real, reference - logps, 0.0)
  kl = -log_ratio if estimator == 'k1' else log_ratio.exp() - 1 - log_ratio
  rewards = -kl_coefficient * kl
  rewards[torch.arange(B), torch.clamp(lengths, max=T - 1)] += scores
  values = torch.where(with_end, values, 0.0)
  advantage, advantages = torch.zeros(B), []
  for t in reversed(range(T)):
    next_value = values[:, t + 1] if t + 1 < T else 0.0
    delta = rewards[:, t] + discount * next_value - values[:, t]
    advantage = delta + discount * gae_lambda * advantage
    advantages.insert(0, advantage)
  advantages = torch.stack(advantages, 1)
  white = torch.where(real, _masked_whiten(advantages, real), 0.0)
  return advantages, white, advantages + values


def _rollouts(lengths):
  rng = np.random.default_rng(0)
  logps, reference = -rng.exponential(size=(2, B, T))
  values, scores = rng.normal(size=(B, T)), rng.normal(size=B)
  floats = map(np.float32, (scores, logps, reference, values))
  return (lengths, *floats)


def _ours(rollouts, kl_coefficient=0.1, estimator='k1', end=0, **options):
  """Ours; `end` positions more than there are tokens count as real."""
  lengths, scores, logps, reference, values = rollouts
  position = np.arange(T)
  mask = position < np.minimum(lengths + end, T)[:, None]
  kl = policy_gradient.kl_estimates[estimator](logps, reference)
  kl = jnp.where(position < lengths[:, None], kl, 0.0)
  rewards = policy_gradient.token_rewards(
    scores, kl, mask, kl_coefficient=kl_coefficient
  )
  return policy_gradient.generalized_advantages(
    rewards, values, mask, **(OPTIONS | options)
  )


def _close(ours, theirs, **tolerance):
  tolerance = dict(rtol=1e-4, atol=1e-5) | tolerance
  np.testing.assert_allclose(ours, theirs, **tolerance)


@pytest.mark.parametrize('estimator', ['k1', 'k3'])
def test_completions_of_full_length_have_their_advantages(estimator):
  rollouts = _rollouts(np.full(B, T))
  advantages, white, returns = _theirs(rollouts, 0.1, estimator, **OPTIONS)
  ours, our_returns = _ours(rollouts, estimator=estimator)
  _close(ours, advantages)
  _close(our_returns, returns)
  _close(policy_gradient.whiten(ours, np.ones((B, T))), white)


def test_their_completions_that_ended_have_a_value_after_their_end():
  """The score is a reward of that position, which is a target of values too."""
  rollouts = _rollouts(LENGTHS)
  theirs, white, returns = _theirs(rollouts, 0.1, 'k1', **OPTIONS)
  real = np.arange(T) < LENGTHS[:, None]
  ours, our_returns = _ours(rollouts)
  cut = LENGTHS == T
  _close(ours[cut], theirs[cut])
  difference = np.abs(ours - np.asarray(theirs)) * real
  assert (difference[~cut].max(1) > 1e-3).all()
  assert np.abs((our_returns - np.asarray(returns)) * real).max() > 0.01
  # They are ours if that position is taken for a token without a penalty.
  ended, ended_returns = _ours(rollouts, end=1)
  _close(ended, theirs)
  with_end = np.arange(T) < LENGTHS[:, None] + 1
  _close(ended_returns, np.where(with_end, returns, 0.0))
  _close(policy_gradient.whiten(ended, real), white)


@pytest.mark.parametrize('perfect', [True, False])
def test_their_value_after_the_end_matters_unless_it_is_the_score(perfect):
  """Or unless lambda is 1, where values cancel but for the present token's."""
  lengths, scores, logps, reference, values = _rollouts(LENGTHS)
  gae_lambda = 1.0
  if perfect:
    gae_lambda, ended = 0.95, np.flatnonzero(lengths < T)
    values[ended, lengths[ended]] = scores[ended]
  rollouts = lengths, scores, logps, reference, values
  options = OPTIONS | dict(gae_lambda=gae_lambda)
  theirs, _, _ = _theirs(rollouts, 0.1, 'k1', **options)
  real = np.arange(T) < lengths[:, None]
  ours, _ = _ours(rollouts, **options)
  _close(np.asarray(ours)[real], theirs[real])


@pytest.mark.parametrize('shift_mean', [True, False])
def test_whitening_is_theirs(shift_mean):
  rng = np.random.default_rng(0)
  values = np.float32(rng.normal(size=(B, T)) * 3 + 2)
  mask = np.arange(T) < LENGTHS[:, None]
  ours = policy_gradient.whiten(values, mask, shift_mean=shift_mean)
  theirs = _masked_whiten(*map(torch.tensor, (values, mask)), shift_mean)
  _close(np.asarray(ours)[mask], theirs[mask])
  # With the variance over n, as in OpenAI's summarisation, it is another.
  biased = (values - values[mask].mean()) / values[mask].std()
  if shift_mean:
    assert np.abs(ours - biased)[mask].max() > 1e-3


def test_their_whitening_of_a_single_entry_is_nan():
  values, mask = torch.ones(1, T), torch.arange(T)[None] < 1
  assert torch.isnan(_masked_whiten(values, mask)).all()
  ours = policy_gradient.whiten(values.numpy(), mask.numpy())
  np.testing.assert_array_equal(ours, 0.0)


def test_the_controller_is_theirs():
  """TRL 0.11's AdaptiveKLController, with its defaults: target 6, 10,000."""
  rng = np.random.default_rng(0)
  theirs = ours = 0.2
  for kl in rng.exponential(size=50) * 6:
    proportional = np.clip(kl / 6.0 - 1, -0.2, 0.2)
    theirs = theirs * (1 + proportional * 256 / 10_000)
    ours = policy_gradient.adaptive_kl_coefficient(
      ours, kl, 256, target=6.0, horizon=10_000
    )
  _close(ours, theirs)
  assert abs(theirs - 0.2) > 0.005
