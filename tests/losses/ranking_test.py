"""Plackett-Luce over K answers: Eq. 20 of arXiv:2305.18290."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax import losses, types
from tests.losses import closed_forms
from tests.losses.pairs import gradient, random_pairs

FN = losses.RANKING_LOSSES['plackett_luce']
LOSS = jax.jit(functools.partial(FN, beta=0.3))


def _ranked(seed=0, shape=(5,), answers=4):
  rng = np.random.default_rng(seed)
  policy, reference = -20 + 3 * rng.normal(size=(2, *shape, answers))
  return types.RankedLogps(
    policy=jnp.float32(policy),
    reference=jnp.float32(reference),
    length=jnp.ones((*shape, answers), jnp.int32),
  )


def _rewards(ranked, beta=0.3):
  policy = np.asarray(ranked.policy, np.float64)
  return beta * (policy - np.asarray(ranked.reference, np.float64))


@pytest.mark.parametrize('answers', [1, 3, 6])
def test_values_and_gradients_are_equation_20(answers):
  ranked = _ranked(answers=answers)
  rewards = _rewards(ranked)
  expected = [closed_forms.plackett_luce(r) for r in rewards]
  np.testing.assert_allclose(LOSS(ranked), expected, rtol=1e-5, atol=1e-6)

  def total(rewards):
    return sum(closed_forms.plackett_luce(r) for r in rewards)

  np.testing.assert_allclose(
    gradient(LOSS, ranked),
    0.3 * closed_forms.gradient(total, rewards),
    rtol=1e-4,
    atol=1e-6,
  )


def test_two_answers_are_dpo():
  pairs = random_pairs()
  ranked = types.RankedLogps(pairs.policy, pairs.reference, pairs.length)
  dpo = functools.partial(losses.PREFERENCE_LOSSES['dpo'], beta=0.3)
  np.testing.assert_allclose(LOSS(ranked), dpo(pairs), rtol=1e-5)
  np.testing.assert_allclose(
    gradient(LOSS, ranked), gradient(dpo, pairs), rtol=1e-4
  )


def test_probabilities_of_all_orders_add_up_to_1():
  ranked = _ranked(shape=(3,))
  orders = np.array(list(itertools.permutations(range(4))))
  total = jnp.exp(-LOSS(jax.tree.map(lambda x: x[:, orders], ranked))).sum(-1)
  np.testing.assert_allclose(total, 1.0, rtol=1e-5)


def test_shifting_all_answers_changes_nothing():
  ranked = _ranked()
  moved = ranked.replace(policy=ranked.policy + 3.0)
  np.testing.assert_allclose(LOSS(moved), LOSS(ranked), rtol=1e-5)
  np.testing.assert_allclose(gradient(LOSS, ranked).sum(-1), 0.0, atol=1e-6)


def test_better_first_answer_is_better():
  assert (gradient(LOSS, _ranked())[:, 0] < 0).all()


@pytest.mark.parametrize('beta', [0.1, 1.0])
def test_finite_at_extremes(beta):
  ends = [-1e4, 0.0, 1e4]
  policy = jnp.array(list(itertools.product(ends, repeat=3)))
  ranked = types.RankedLogps(
    policy, jnp.zeros_like(policy), jnp.ones(policy.shape, jnp.int32)
  )
  fn = functools.partial(FN, beta=beta)
  assert np.isfinite(fn(ranked)).all()
  assert np.isfinite(gradient(fn, ranked)).all()
  # The worst order costs what its rewards are apart.
  worst = types.RankedLogps(
    jnp.array([[-1e4, 0.0, 1e4]]), jnp.zeros((1, 3)), jnp.ones((1, 3))
  )
  np.testing.assert_allclose(fn(worst), beta * 3e4, rtol=1e-5)


def test_leading_axes_jit_vmap_and_bfloat16():
  ranked = _ranked(shape=(6,))
  out = LOSS(ranked)
  rows = jax.tree.map(lambda x: x.reshape(3, 2, 4), ranked)
  np.testing.assert_allclose(LOSS(rows), out.reshape(3, 2), rtol=1e-5)
  eager = FN(ranked, beta=0.3)
  np.testing.assert_allclose(eager, out, rtol=1e-5)
  np.testing.assert_allclose(jax.vmap(LOSS)(ranked), out, rtol=1e-5)
  betas = jnp.array([0.1, 0.3])
  swept = jax.vmap(lambda b: FN(ranked, beta=b))(betas)
  np.testing.assert_allclose(swept[1], out, rtol=1e-5)
  low = ranked.replace(policy=ranked.policy.astype(jnp.bfloat16))
  high = ranked.replace(policy=low.policy.astype(jnp.float32))
  assert LOSS(low).dtype == jnp.float32
  np.testing.assert_array_equal(LOSS(low), LOSS(high))


def test_bad_input_is_named():
  with pytest.raises(ValueError, match='beta is 0'):
    FN(_ranked(), beta=0)
  with pytest.raises(ValueError, match='reference=None'):
    LOSS(_ranked().replace(reference=None))
