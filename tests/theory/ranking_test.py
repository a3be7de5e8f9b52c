"""Plackett-Luce: Eqs. 18 to 20 of arXiv:2305.18290, over all K! rankings."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax import losses, types
from tests.theory import bandit

pytestmark = pytest.mark.usefixtures('float64')

close = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-9)


def _rankings(answers):
  """Every order, i64[K!, K], the best answer first."""
  return np.array(list(itertools.permutations(range(answers))))


def _loss(policy, w, rankings):
  """Of those rankings of every prompt, f[X, rankings]."""
  shape = (-1, rankings.shape[-1])
  ranked = types.RankedLogps(
    policy=jnp.asarray(policy)[:, rankings].reshape(shape),
    reference=jnp.asarray(w.reference)[:, rankings].reshape(shape),
    length=jnp.ones((len(policy) * len(rankings), shape[-1]), jnp.int32),
  )
  loss = losses.RANKING_LOSSES['plackett_luce'](ranked, beta=w.beta)
  return loss.reshape(len(policy), len(rankings))


def _eq_18(reward, rankings):
  """prod_k exp r_tau(k) / sum_{j >= k} exp r_tau(j), f64[X, rankings]."""
  out = np.ones((len(reward), len(rankings)))
  for x in range(len(reward)):
    for i, tau in enumerate(rankings):
      for k in range(len(tau)):
        e = np.exp(reward[x, tau[k:]])
        out[x, i] *= e[0] / e.sum()
  return out


@pytest.mark.parametrize('answers', [2, 4])
def test_eqs_18_to_20_a_rankings_loss_is_minus_its_log_probability(answers):
  """Of the policy's implicit reward, whatever Z; K = 1 left is certain."""
  w = bandit.world(0, answers=answers)
  rankings, policy = _rankings(answers), bandit.random_policy(1, w)
  loss = _loss(policy, w, rankings)
  reward = w.beta * (policy - w.reference)
  close(np.exp(-loss), _eq_18(reward, rankings))
  # Of the best policy it is the reward's own: Eq. 19.
  close(
    np.exp(-_loss(bandit.optimum(w), w, rankings)), _eq_18(w.reward, rankings)
  )


@pytest.mark.parametrize('answers', [2, 5])
def test_eq_18_sums_to_1_over_all_rankings(answers):
  w = bandit.world(2, answers=answers)
  rankings = _rankings(answers)
  assert len(rankings) == math.factorial(answers)
  loss = _loss(bandit.random_policy(3, w), w, rankings)
  close(np.exp(-loss).sum(axis=-1), 1)


def test_eq_20_of_two_answers_is_eq_7():
  w = bandit.world(4, answers=2)
  policy, pairs = bandit.random_policy(5, w), bandit.ordered_pairs(2)
  expected = losses.PREFERENCE_LOSSES['dpo'](
    bandit.pair_logps(policy, w.reference, pairs), beta=w.beta
  )
  close(_loss(policy, w, pairs).reshape(-1), expected)


def test_the_first_place_is_a_softmax_of_the_rewards():
  """The first factor of Eq. 18 is a choice among all K."""
  w = bandit.world(5)
  policy, rankings = bandit.random_policy(6, w), _rankings(4)
  probability = np.exp(-_loss(policy, w, rankings))
  expected = np.exp(bandit.log_softmax(w.beta * (policy - w.reference)))
  for i in range(4):
    first = rankings[:, 0] == i
    close(probability[:, first].sum(axis=-1), expected[:, i])


def test_any_two_answers_of_a_ranking_are_as_bradley_terry_has_them():
  """Luce's choice axiom: the others in the ranking do not matter."""
  w = bandit.world(6)
  policy, rankings = bandit.random_policy(7, w), _rankings(4)
  probability = np.exp(-_loss(policy, w, rankings))
  expected = bandit.bradley_terry(w.beta * (policy - w.reference))
  place = np.argsort(rankings, axis=-1)
  for i, j in bandit.ordered_pairs(4):
    first = place[:, i] < place[:, j]
    close(probability[:, first].sum(axis=-1), expected[:, i, j])


def test_lemma_1_equivalent_rewards_have_the_same_rankings():
  w = bandit.world(8)
  policy, rankings = bandit.random_policy(9, w), _rankings(4)
  shifted = policy + np.array([[3.0], [-7.0]])
  close(_loss(shifted, w, rankings), _loss(policy, w, rankings), rtol=1e-7)


@pytest.mark.parametrize('beta', [0.1, 5.0])
def test_eq_20_of_all_rankings_lands_on_eq_4(beta):
  w = bandit.world(10, beta=beta)
  rankings = _rankings(4)
  probability = jnp.asarray(_eq_18(w.reward, rankings))

  def total(logits):
    loss = _loss(jax.nn.log_softmax(logits), w, rankings)
    return jnp.sum(probability * loss)

  landed = bandit.log_softmax(bandit.minimise(total, w.reference))
  close(landed, bandit.optimum(w), atol=1e-6)
