"""f-divergences: scores are f' of the paper's f, and stay finite."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax import losses
from tests.losses import closed_forms
from tests.losses.pairs import random_pairs

CASES = [
  *[(name, {}) for name in losses.DIVERGENCES],
  *[('alpha', dict(alpha=a)) for a in (0.1, 0.9)],
]
each_case = pytest.mark.parametrize(('name', 'options'), CASES)


def _score(name, options=None):
  return functools.partial(losses.DIVERGENCES[name], **(options or {}))


def test_every_divergence_has_a_closed_form():
  assert set(losses.DIVERGENCES) == set(closed_forms.F)


@each_case
def test_scores_and_slopes_are_those_of_f(name, options):
  log_u = np.linspace(-6, 6, 25)

  def f_prime(log_u):
    """From f alone: central differences at u and at 1, where scores are 0."""
    f = functools.partial(closed_forms.F[name], **options)
    step = 1e-6
    slopes = [
      (f(u * (1 + step)) - f(u * (1 - step))) / (2 * step * u)
      for u in (np.exp(log_u), 1.0)
    ]
    return slopes[0] - slopes[1]

  score = _score(name, options)
  expected = f_prime(log_u)
  np.testing.assert_allclose(score(log_u), expected, rtol=1e-4, atol=1e-4)
  slope = (f_prime(log_u + 1e-3) - f_prime(log_u - 1e-3)) / 2e-3
  got = jax.vmap(jax.grad(score))(jnp.float32(log_u))
  np.testing.assert_allclose(got, slope, rtol=1e-3, atol=1e-3)


@each_case
def test_scores_rise_and_are_0_at_the_reference(name, options):
  score = _score(name, options)
  grid = np.linspace(-15, 15, 61)
  assert (np.diff(score(grid)) >= 0).all()
  assert (np.diff(score(grid[:41])) > 0).all()
  np.testing.assert_allclose(score(jnp.zeros(1)), 0.0, atol=1e-7)


@each_case
def test_finite_float32_at_extremes_and_from_bfloat16(name, options):
  score = _score(name, options)
  at = jnp.array([-1e4, -2e3, -300.0, -90.0, 90.0, 300.0, 2e3, 1e4])
  grads = jax.vmap(jax.grad(score))(at)
  assert np.isfinite(score(at)).all() and np.isfinite(grads).all()
  assert (grads >= 0).all()
  assert score(at.astype(jnp.bfloat16)).dtype == jnp.float32


@pytest.mark.parametrize(
  ('name', 'options', 'rate'),
  [('forward_kl', {}, 1.0), ('alpha', dict(alpha=0.5), 0.5)],
)
def test_beyond_exponent_30_it_goes_on_along_the_tangent(name, options, rate):
  score = _score(name, options)
  edge = -30 / rate
  at_edge = (1 - np.exp(30.0)) / rate
  log_u = jnp.array([edge + 1, edge, edge - 10, edge - 1000, -1e4])
  expected = at_edge + np.exp(30.0) * (np.asarray(log_u) - edge)
  expected[0] = (1 - np.exp(30.0 - rate)) / rate
  np.testing.assert_allclose(score(log_u), expected, rtol=1e-5)
  np.testing.assert_allclose(
    jax.vmap(jax.grad(score))(log_u),
    np.exp(30.0) * np.array([np.exp(-rate), 1, 1, 1, 1]),
    rtol=1e-5,
  )


def test_alpha_goes_from_reverse_to_forward_kl():
  log_u = jnp.linspace(-5, 5, 21)
  for alpha, limit in ((1e-5, 'reverse_kl'), (1.0, 'forward_kl')):
    got, expected = _score('alpha', dict(alpha=alpha)), _score(limit)
    np.testing.assert_allclose(
      got(log_u), expected(log_u), rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(
      jax.vmap(jax.grad(got))(log_u),
      jax.vmap(jax.grad(expected))(log_u),
      rtol=1e-4,
    )


def test_dpo_under_reverse_kl_is_dpo():
  pairs = random_pairs()
  ratios = pairs.policy - pairs.reference
  scores = pairs.replace(
    policy=_score('reverse_kl')(ratios), reference=jnp.zeros((7, 2))
  )
  dpo = functools.partial(losses.PREFERENCE_LOSSES['dpo'], beta=0.3)
  np.testing.assert_allclose(dpo(scores), dpo(pairs), rtol=1e-5)


def test_vmap_over_alpha_is_separate_calls():
  log_u, alphas = jnp.linspace(-5, 5, 21), jnp.array([0.2, 0.5, 0.8])
  swept = jax.vmap(lambda a: losses.DIVERGENCES['alpha'](log_u, alpha=a))(
    alphas
  )
  for alpha, row in zip(alphas, swept):
    expected = losses.DIVERGENCES['alpha'](log_u, alpha=float(alpha))
    np.testing.assert_allclose(row, expected, rtol=1e-5)


@pytest.mark.parametrize('alpha', [0.0, -0.5, 1.5, '0.5'])
def test_bad_alpha_is_named(alpha):
  with pytest.raises(ValueError, match='alpha'):
    losses.DIVERGENCES['alpha'](jnp.zeros(3), alpha=alpha)
