"""f-DPO: what keeps the policy near pi_ref decides where it lands.

arXiv:2309.16240: of J(pi) = E[r] - beta D_f(pi || pi_ref) the best policy has
beta f'(pi / pi_ref) = r + c(x), and DPO with the scores f' in the place of the
log-ratios finds it. f and f' are written down here once more.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax import losses
from dpo_jax.methods import dpo, pair_options
from tests.theory import bandit

pytestmark = pytest.mark.usefixtures('float64')

close = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6)
BETA = 0.5


class Divergence(NamedTuple):
  """f, and u as a function of f'(u) = t, which rises up to the limit of f'."""

  name: str
  options: dict[str, float]
  f: Callable[[np.ndarray], np.ndarray]
  inverse: Callable[[np.ndarray], np.ndarray]
  limit: float


def _alpha(a):
  return Divergence(
    'alpha',
    dict(alpha=a),
    lambda u: (u ** (1 - a) - (1 - a) * u - a) / (a * (a - 1)),
    lambda t: (1 - a * t) ** (-1 / a),
    1 / a,
  )


DIVERGENCES = [
  Divergence(
    'reverse_kl',
    {},
    lambda u: u * np.log(u),
    lambda t: np.exp(t - 1),
    np.inf,
  ),
  Divergence('forward_kl', {}, lambda u: -np.log(u), lambda t: -1 / t, 0.0),
  Divergence(
    'jensen_shannon',
    {},
    lambda u: u * np.log(u) - (u + 1) * np.log((u + 1) / 2),
    lambda t: np.exp(t) / (2 - np.exp(t)),
    np.log(2),
  ),
  _alpha(0.3),
  _alpha(0.7),
]


@pytest.fixture(
  params=DIVERGENCES,
  ids=lambda d: '-'.join(map(str, [d.name, *d.options.values()])),
)
def d(request):
  return request.param


def _scores(ratio, d):
  """f'(u) of log u up to a constant, by the registered function."""
  return np.asarray(losses.DIVERGENCES[d.name](jnp.asarray(ratio), **d.options))


def _value(logps, w, d):
  """J(pi) of each prompt."""
  u = np.exp(logps - w.reference)
  divergence = (np.exp(w.reference) * d.f(u)).sum(axis=-1)
  return (np.exp(logps) * w.reward).sum(axis=-1) - w.beta * divergence


def _optimum(w, d):
  """log pi of beta f'(u) = r + c, with the c of sum pi = 1 by bisection."""
  top = w.reward.max(axis=-1, keepdims=True)
  high = np.full_like(top, d.limit if np.isfinite(d.limit) else 60.0)
  low = high - 200.0
  for _ in range(200):
    middle = (low + high) / 2
    u = d.inverse(middle + (w.reward - top) / w.beta)
    over = (np.exp(w.reference) * u).sum(-1, keepdims=True) > 1
    low, high = np.where(over, low, middle), np.where(over, middle, high)
  return w.reference + np.log(d.inverse(low + (w.reward - top) / w.beta))


def _learned(w, d):
  """log-probs that minimise the method's loss, from the reference on."""
  terms = pair_options.make_terms('dpo', dict(beta=w.beta), None, beside=())
  comparison = pair_options.make_comparison(
    terms,
    length='sum',
    ld_alpha=None,
    correction_weight=None,
    divergence=d.name,
    divergence_options=d.options,
  )
  total = bandit.population_loss(
    lambda pairs: terms[0].loss(dpo.diverge(comparison.divergence, pairs)),
    w.reference,
    bandit.bradley_terry(w.reward),
  )
  return bandit.log_softmax(bandit.minimise(total, w.reference))


def test_the_populations_minimiser_implies_the_reward_and_is_best(d):
  """beta f'(pi / pi_ref) = r + c(x), and J is less wherever else one looks."""
  w = bandit.world(0, beta=BETA)
  landed = _learned(w, d)
  implied = w.beta * _scores(landed - w.reference, d)
  constant = (w.reward - implied).mean(axis=-1, keepdims=True)
  close(implied + constant, w.reward)
  close(landed, _optimum(w, d))
  assert np.abs(landed - w.reference).max() > 0.3

  best, rng = _value(landed, w, d), np.random.default_rng(0)
  for size in (1e-3, 1e-2, 0.1, 1.0):
    for _ in range(50):
      moved = bandit.log_softmax(landed + size * rng.normal(size=landed.shape))
      assert (_value(moved, w, d) < best).all()


def test_each_divergence_lands_elsewhere():
  """Else the test above could not tell them apart; reverse KL is Eq. 4."""
  w = bandit.world(3, beta=BETA)
  found = np.array([_optimum(w, d) for d in DIVERGENCES])
  distance = np.abs(found[:, None] - found[None]).max((-1, -2))
  assert (distance + np.eye(len(found)) > 0.03).all()
  close(found[0], bandit.optimum(w))


def test_scores_are_the_slope_of_f(d):
  """Up to f'(1), which cancels in a difference of two."""
  log_u = np.linspace(-4, 3, 29)
  u, step = np.exp(log_u), 1e-5
  slope = (d.f(u * (1 + step)) - d.f(u * (1 - step))) / (2 * step * u)
  one = (d.f(1 + step) - d.f(1 - step)) / (2 * step)
  close(_scores(log_u, d), slope - one, rtol=1e-5)
