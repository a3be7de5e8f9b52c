"""DPO of a whole population: Eq. 7 of arXiv:2305.18290 and its gradient.

Its appendix A.4 writes the gradient with the two answers exchanged; section 4
is right, as the tests below show.
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


def _dpo(beta):
  return functools.partial(losses.PREFERENCE_LOSSES['dpo'], beta=beta)


def _gradient(policy, w, pairs):
  """d(mean loss over prompts and pairs)/d logits, f[X, K]."""

  def mean(logits):
    logps = jax.nn.log_softmax(logits)
    out = _dpo(w.beta)(bandit.pair_logps(logps, w.reference, pairs))
    return out.mean()

  return np.asarray(jax.jit(jax.grad(mean))(policy))


def _section_4(policy, w, pairs, weight_fn=None):
  """-beta E[sigma(r_l - r_w) (grad log pi(y_w) - grad log pi(y_l))].

  weight_fn(r_w, r_l) takes the place of the weight.
  """
  weight_fn = weight_fn or (lambda r_w, r_l: bandit.sigmoid(r_l - r_w))
  reward = w.beta * (policy - w.reference)
  total = np.zeros_like(policy)
  for x in range(len(policy)):
    for i, j in pairs:
      # grad log pi(i) - grad log pi(j): the softmax's own part cancels.
      weight = weight_fn(reward[x, i], reward[x, j])
      total[x, i] -= w.beta * weight
      total[x, j] += w.beta * weight
  return total / (len(policy) * len(pairs))


@pytest.mark.parametrize('beta', [0.1, 0.5])
def test_gradient_descent_on_eq_7_ends_at_eq_4(beta):
  w = bandit.world(3, prompts=1, answers=6, beta=beta)
  preferred = bandit.bradley_terry(w.reward)
  total = bandit.population_loss(_dpo(beta), w.reference, preferred)
  # No pair bends more than beta^2 / 4, and each answer is in 10.
  rate = 1 / (3 * beta**2)

  @jax.jit
  def descend(logits):
    step = jax.grad(total)
    body = lambda _, x: x - rate * step(x)  # noqa: E731
    return jax.lax.fori_loop(0, 3000, body, logits)

  landed = bandit.log_softmax(np.asarray(descend(jnp.asarray(w.reference))))
  close(landed, bandit.optimum(w), atol=1e-6)
  assert np.abs(landed - w.reference).max() > 1


def test_how_often_pairs_are_shown_changes_nothing():
  """As long as each is: what a pair says of the rewards is the same."""
  w = bandit.world(4)
  shown = np.random.default_rng(0).uniform(0.05, 5, size=(2, 4, 4))
  preferred = bandit.bradley_terry(w.reward) * (shown + shown.swapaxes(1, 2))
  total = bandit.population_loss(_dpo(w.beta), w.reference, preferred)
  landed = bandit.log_softmax(bandit.minimise(total, w.reference))
  close(landed, bandit.optimum(w), atol=1e-6)


def test_an_answer_that_is_never_shown_is_not_placed():
  """Eqs. 4 and 7 agree on the answers in the data, and there alone."""
  w = bandit.world(5, prompts=1)
  preferred = bandit.bradley_terry(w.reward)
  preferred[:, 3] = preferred[:, :, 3] = 0
  total = bandit.population_loss(_dpo(w.beta), w.reference, preferred)
  best, landed = bandit.optimum(w), []
  for seed in range(2):
    start = bandit.random_policy(seed, w)
    landed.append(bandit.log_softmax(bandit.minimise(total, start)))
    shown = bandit.log_softmax(landed[-1][:, :3])
    close(shown, bandit.log_softmax(best[:, :3]), atol=1e-6)
  assert np.abs(landed[0] - landed[1])[0, 3] > 0.1


@pytest.mark.parametrize('beta', [0.1, 2.0])
def test_section_4_is_the_gradient_of_eq_7(beta):
  w = bandit.world(6, beta=beta)
  policy, pairs = bandit.random_policy(1, w), bandit.ordered_pairs(4)[::2]
  expected = _section_4(policy, w, pairs)
  close(_gradient(policy, w, pairs), expected)
  assert np.abs(expected).max() > 1e-3


def test_appendix_a_4_has_the_gradients_weight_the_wrong_way_round():
  """A.4 ends with sigma(r_w - r_l): large where the policy is right already."""

  def a_4(r_w, r_l):
    return bandit.sigmoid(r_w - r_l)

  w = bandit.world(7, prompts=1, answers=2)
  pairs = np.array([[0, 1]])
  for margin in (-8.0, -1.0, 1.0, 8.0):
    moved = np.array([[margin / w.beta, 0.0]])
    policy = bandit.log_softmax(w.reference + moved)
    got = _gradient(policy, w, pairs)
    close(got, _section_4(policy, w, pairs))
    wrong = _section_4(policy, w, pairs, a_4)
    assert np.abs(got - wrong).max() > 0.4 * w.beta
    # Together they weigh 1, so that they agree on a tie alone.
    close((got + wrong)[0], [-w.beta, w.beta])
    assert (np.abs(got) > np.abs(wrong)).all() == (margin < 0)
  tie = _gradient(w.reference, w, pairs)
  close(tie, _section_4(w.reference, w, pairs, a_4))
  close(tie, _section_4(w.reference, w, pairs))


def test_eq_21_as_printed_would_learn_the_opposite():
  """A.4 also exchanges y_w and y_l within the sigmoid.

  That loss is least where the policy contradicts the labels; Eq. 7 is least
  where it agrees.
  """
  w = bandit.world(8)
  preferred = bandit.bradley_terry(w.reward)

  def eq_21(pairs):
    exchanged = jax.tree.map(lambda x: x[..., ::-1], pairs)
    return _dpo(w.beta)(exchanged)

  for fn, sign in ((_dpo(w.beta), 1), (eq_21, -1)):
    total = bandit.population_loss(fn, w.reference, preferred)
    landed = bandit.log_softmax(bandit.minimise(total, w.reference))
    expected = bandit.optimum(w._replace(reward=sign * w.reward))
    close(landed, expected, atol=1e-6)


def test_dpo_at_the_reference_is_log_2_with_weight_one_half():
  w = bandit.world(9)
  pairs = bandit.ordered_pairs(4)
  at_start = bandit.pair_logps(w.reference, w.reference, pairs)
  close(_dpo(w.beta)(at_start), np.log(2))
  expected = _section_4(w.reference, w, pairs[:5], lambda r_w, r_l: 0.5)
  close(_gradient(w.reference, w, pairs[:5]), expected)
