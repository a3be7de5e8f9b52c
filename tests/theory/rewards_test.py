"""Rewards and policies: Eqs. 1 to 6 and 8 to 17 of arXiv:2305.18290.

With Lemmas 1 and 2, Theorem 1 and Proposition 1, in a world of which all can be
enumerated.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax import losses
from tests.theory import bandit

pytestmark = pytest.mark.usefixtures('float64')

close = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-9)


@pytest.fixture(params=[(0, 0.1), (2, 5.0)], ids='beta {0[1]}'.format)
def w(request):
  seed, beta = request.param
  return bandit.world(seed, beta=beta)


def _value(logps, w):
  """E_x E_pi[r] - beta KL(pi || pi_ref) summed over prompts: Eqs. 3 and 11."""
  implicit = bandit.implicit_rewards(logps, w.reference, w.beta)
  return (np.exp(logps) * (w.reward - implicit)).sum()


def _maximiser(w):
  """The probabilities that maximise Eq. 3, from the reference on."""

  def cost(logits):
    logps = jax.nn.log_softmax(logits)
    value = w.reward - w.beta * (logps - w.reference)
    return -jnp.sum(jnp.exp(logps) * value)

  return np.exp(bandit.log_softmax(bandit.minimise(cost, w.reference)))


def _projection(reward, w):
  """f(r; pi_ref, beta) of Eq. 8."""
  return (
    reward - w.beta * bandit.log_partition(w._replace(reward=reward))[:, None]
  )


def _learned(w, preferred):
  """log-probs that minimise DPO's loss, from the reference on."""
  loss = functools.partial(losses.PREFERENCE_LOSSES['dpo'], beta=w.beta)
  total = bandit.population_loss(loss, w.reference, preferred)
  return bandit.log_softmax(bandit.minimise(total, w.reference))


def test_eqs_3_and_4_the_best_policy_is_the_reference_times_exp_reward(w):
  """And Eq. 15, where the derivation of Eq. 4 ends."""
  close(_maximiser(w), np.exp(bandit.optimum(w)), atol=1e-8)


def test_eqs_11_to_14_a_policy_falls_short_by_beta_kl(w):
  best = bandit.optimum(w)
  close(_value(best, w), w.beta * bandit.log_partition(w).sum())
  for seed in range(5):
    q = bandit.random_policy(seed, w)
    kl = (np.exp(q) * (q - best)).sum()
    close(_value(best, w) - _value(q, w), w.beta * kl)


def test_eqs_5_and_17_the_best_policys_implicit_reward_is_the_reward(w):
  """r = beta log pi_r/pi_ref + beta log Z."""
  implicit = bandit.implicit_rewards(bandit.optimum(w), w.reference, w.beta)
  close(implicit + w.beta * bandit.log_partition(w)[:, None], w.reward)


def test_eqs_1_6_and_16_the_best_policy_tells_the_preferences(w):
  """exp(-loss) is p*(y_w > y_l), whatever Z(x)."""
  assert np.ptp(bandit.log_partition(w)) > 1e-3
  pairs = bandit.ordered_pairs(4)
  loss = losses.PREFERENCE_LOSSES['dpo'](
    bandit.pair_logps(bandit.optimum(w), w.reference, pairs), beta=w.beta
  )
  preferred = bandit.bradley_terry(w.reward)[:, pairs[:, 0], pairs[:, 1]]
  close(np.exp(-loss), preferred.reshape(-1))
  r = w.reward[:, pairs]
  close(preferred, bandit.sigmoid(r[..., 0] - r[..., 1]))


def test_eqs_2_and_7_dpo_is_the_reward_models_loss_of_implicit_rewards(w):
  policy, pairs = bandit.random_policy(0, w), bandit.ordered_pairs(4)
  loss = losses.PREFERENCE_LOSSES['dpo'](
    bandit.pair_logps(policy, w.reference, pairs), beta=w.beta
  )
  r = bandit.implicit_rewards(policy, w.reference, w.beta)[:, pairs]
  close(loss, np.logaddexp(0, r[..., 1] - r[..., 0]).reshape(-1))


def test_lemma_1_equivalent_rewards_have_the_same_preferences(w):
  """As labels, and as implicit rewards that the loss reads."""
  shift = np.array([[3.0], [-7.0]])
  shifted = bandit.bradley_terry(w.reward + shift)
  close(shifted, bandit.bradley_terry(w.reward))
  policy, pairs = bandit.random_policy(0, w), bandit.ordered_pairs(4)
  moved, still = (
    losses.PREFERENCE_LOSSES['dpo'](
      bandit.pair_logps(p, w.reference, pairs), beta=w.beta
    )
    for p in (policy + shift / w.beta, policy)
  )
  close(moved, still, rtol=1e-7)


def test_lemma_2_equivalent_rewards_have_the_same_best_policy(w):
  shifted = w._replace(reward=w.reward + np.array([[3.0], [-7.0]]))
  close(_maximiser(shifted), _maximiser(w), atol=1e-8)
  close(bandit.optimum(shifted), bandit.optimum(w))


def test_theorem_1_dpo_finds_the_classs_member_of_eq_8(w):
  """A policy's implicit reward, of any reward's preferences."""
  learned = _learned(w, bandit.bradley_terry(w.reward))
  implicit = bandit.implicit_rewards(learned, w.reference, w.beta)
  close(implicit, _projection(w.reward, w), atol=1e-6)
  # It differs from the reward by a function of the prompt alone.
  close(np.ptp(w.reward - implicit, axis=-1), 0, atol=1e-6)


def test_eqs_8_and_9_the_projection_is_idempotent_and_normalised(w):
  projected = _projection(w.reward, w)
  close(_projection(projected, w), projected)
  close(_projection(w.reward + np.array([[3.0], [-7.0]]), w), projected)
  close(np.exp(w.reference + projected / w.beta).sum(axis=-1), 1)
  # Every policy's implicit reward is such a member already.
  policy = bandit.random_policy(0, w)
  implicit = bandit.implicit_rewards(policy, w.reference, w.beta)
  close(_projection(implicit, w), implicit)


def test_proposition_1_one_member_of_a_class_is_a_policys_reward(w):
  """Of f(r) + c(x) the sum of Eq. 9 is exp(c / beta), 1 for c = 0 alone.

  So DPO lands on one policy, from wherever it starts.
  """
  shift = w.beta * np.array([[0.3], [-0.2]])
  member = _projection(w.reward, w) + shift
  total = np.exp(w.reference + member / w.beta).sum(axis=-1)
  close(total, np.exp(shift / w.beta)[:, 0])
  loss = functools.partial(losses.PREFERENCE_LOSSES['dpo'], beta=w.beta)
  preferred = bandit.bradley_terry(w.reward)
  fn = bandit.population_loss(loss, w.reference, preferred)
  for seed in range(3):
    start = bandit.random_policy(seed, w)
    landed = bandit.log_softmax(bandit.minimise(fn, start))
    close(landed, bandit.optimum(w), atol=1e-6)


def _policy_gradient(logps, reward, w):
  """Of one sampled answer: mean over answers f[X, K], total variance f[X].

  (r - beta log pi/pi_ref) grad log pi, with the gradient in the logits.
  """
  slopes = np.eye(logps.shape[-1]) - np.exp(logps)[:, None]
  value = reward - bandit.implicit_rewards(logps, w.reference, w.beta)
  estimate, p = slopes * value[..., None], np.exp(logps)[..., None]
  mean = (p * estimate).sum(axis=1)
  variance = (p * (estimate - mean[:, None]) ** 2).sum(axis=(1, 2))
  return mean, variance


def test_eq_10_the_projection_is_a_baseline(w):
  """The log-partition leaves the mean as it is; near the end it takes noise."""
  best, projected = bandit.optimum(w), _projection(w.reward, w)
  near = bandit.log_softmax(best + 0.01 * bandit.random_policy(0, w))
  for policy in (bandit.random_policy(1, w), w.reference, near, best):
    raw, _ = _policy_gradient(policy, w.reward, w)
    close(_policy_gradient(policy, projected, w)[0], raw)
  for policy, share in ((near, 0.1), (best, 1e-12)):
    _, raw = _policy_gradient(policy, w.reward, w)
    _, left = _policy_gradient(policy, projected, w)
    assert (left < share * raw).all()


def test_eq_10_is_minus_the_distance_to_the_best_policy(w):
  """-beta KL(pi || pi_r): 0 there."""
  best = bandit.optimum(w)
  projected = w._replace(reward=_projection(w.reward, w))
  for policy in (best, w.reference, bandit.random_policy(0, w)):
    kl = (np.exp(policy) * (policy - best)).sum()
    close(_value(policy, projected), -w.beta * kl)
