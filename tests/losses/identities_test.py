"""What the objectives are at their limits, and how they relate."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from dpo_jax import losses
from tests.losses.pairs import demanded, gradient, pairs_at, random_pairs

LOSSES = losses.PREFERENCE_LOSSES


def _loss(name, **options):
  fn = LOSSES[name]
  return functools.partial(fn, **{**demanded(fn, beta=0.3), **options})


def _assert_same(one, other, pairs, rtol=1e-5):
  """Values and gradients."""
  np.testing.assert_allclose(one(pairs), other(pairs), rtol=rtol, atol=1e-6)
  np.testing.assert_allclose(
    gradient(one, pairs), gradient(other, pairs), rtol=rtol, atol=1e-6
  )


def _at_zero_reference(fn):
  return lambda pairs: fn(pairs.replace(reference=jnp.zeros_like(pairs.policy)))


def _swapped(fn):
  """The loss of a pair whose label is the other way round."""

  def swapped(pairs):
    return fn(jax.tree.map(lambda x: x[:, ::-1] if x.ndim == 2 else x, pairs))

  return swapped


def _of_one_token(fn):
  return lambda pairs: fn(pairs.replace(length=jnp.ones_like(pairs.length)))


PLAIN = [
  # One loss with an option at a limit, and the loss that it then is.
  (_loss('dpo', label_smoothing=0.0), _loss('dpo')),
  (_loss('robust', label_smoothing=0.0), _loss('dpo')),
  (_loss('dpop', penalty=0.0), _loss('dpo')),
  (_of_one_token(_loss('dpo_norm')), _loss('dpo')),
  (_of_one_token(_loss('ipo', normalise='tokens')), _loss('ipo')),
  (_loss('simpo', gamma=0.0), _at_zero_reference(_loss('dpo_norm'))),
  (_loss('cpo', likelihood_weight=0.0), _at_zero_reference(_loss('dpo'))),
  (
    _loss('slic', target_weight=0.0),
    _at_zero_reference(_loss('hinge', beta=1)),
  ),
  (_loss('unlikelihood', alpha=0.0), _loss('preferred_ft')),
  (
    _of_one_token(_loss('preferred_ft', normalise='tokens')),
    _loss('preferred_ft'),
  ),
]


@pytest.mark.parametrize('case', range(len(PLAIN)))
def test_at_a_limit_it_is_another_loss(case):
  one, other = PLAIN[case]
  _assert_same(one, other, random_pairs())


def test_length_normalised_dpo_of_equal_lengths_has_a_smaller_beta():
  pairs = random_pairs(length=jnp.full((7, 2), 8))
  _assert_same(_loss('dpo_norm', beta=0.8), _loss('dpo', beta=0.1), pairs)


def test_gamma_is_a_margin_that_simpo_demands():
  # -log sigma(m - gamma) at m is the loss without gamma at m - gamma.
  pairs = random_pairs(length=jnp.ones((7, 2), jnp.int32))
  less = pairs.replace(policy=pairs.policy.at[:, 0].add(-1.5 / 0.3))
  np.testing.assert_allclose(
    _loss('simpo', gamma=1.5)(pairs), _loss('simpo', gamma=0.0)(less), rtol=1e-5
  )


def test_likelihood_terms_add_up():
  pairs = random_pairs()
  for name, option, term in (
    ('cpo', 'likelihood_weight', _loss('preferred_ft')),
    ('slic', 'target_weight', _loss('preferred_ft')),
  ):
    total = _loss(name, **{option: 0.0})(pairs) + 0.7 * term(pairs)
    np.testing.assert_allclose(
      _loss(name, **{option: 0.7})(pairs), total, rtol=1e-5
    )
  answer = pairs.replace(target=pairs.policy[:, 0])
  np.testing.assert_array_equal(
    _loss('slic', target='answer')(answer), _loss('slic')(pairs)
  )


def test_orpo_is_fine_tuning_and_log_2_for_equal_answers():
  pairs = random_pairs(length=jnp.full((7, 2), 9))
  pairs = pairs.replace(policy=jnp.repeat(pairs.policy[:, :1], 2, axis=1))
  fine_tuning = _loss('preferred_ft', normalise='tokens')(pairs)
  np.testing.assert_allclose(
    _loss('orpo', beta=0.3)(pairs) - fine_tuning, 0.3 * np.log(2), rtol=1e-4
  )


@pytest.mark.parametrize(
  'logp', [-1e-6, -1e-3, -0.1, -0.6931, -0.6932, -5, -80]
)
def test_odds_are_exact_on_both_sides_of_the_branch(logp):
  # log odds = -log(exp(-x) - 1); slope 1 / (1 - P).
  pairs = pairs_at([logp, -1.0])
  other = -np.log(np.expm1(1.0))
  ratio = -np.log(np.expm1(-np.float64(np.float32(logp)))) - other
  sigma = 1 / (1 + np.exp(ratio))
  expected = -logp + 0.5 * np.log1p(np.exp(-ratio))
  fn = _loss('orpo', beta=0.5)
  np.testing.assert_allclose(fn(pairs), [expected], rtol=1e-5)
  slope = -1 - 0.5 * sigma / -np.expm1(np.float64(np.float32(logp)))
  np.testing.assert_allclose(gradient(fn, pairs)[0, 0], slope, rtol=1e-4)


@pytest.mark.parametrize('e', [0.05, 0.2, 0.4])
def test_rdpo_is_unbiased_under_flipped_labels(e):
  fn = _loss('robust', label_smoothing=e)

  def expected(pairs):
    return (1 - e) * fn(pairs) + e * _swapped(fn)(pairs)

  _assert_same(expected, _loss('dpo'), random_pairs(), rtol=1e-4)


@pytest.mark.parametrize('e', [0.001, 0.1, 0.4])
def test_exo_is_0_and_least_where_the_policy_has_the_label(e):
  pairs = pairs_at([np.log((1 - e) / e), 0.0])
  fn = _loss('exo', beta=1.0, label_smoothing=e)
  np.testing.assert_allclose(fn(pairs), 0.0, atol=1e-6)
  np.testing.assert_allclose(gradient(fn, pairs), 0.0, atol=1e-6)
  assert (fn(random_pairs()) > 0).all()


@pytest.mark.parametrize('beta', [0.05, 0.5, 2.0])
def test_squared_losses_are_0_at_their_targets(beta):
  half = 0.5 / beta
  for name, at, normalise in (
    ('ipo', [half, 0.0], {}),
    ('ipo', [4 * half, 0.0], dict(normalise='tokens')),
    ('sppo', [half, -half], {}),
  ):
    pairs = pairs_at(at, length=4)
    fn = _loss(name, beta=beta, **normalise)
    np.testing.assert_allclose(fn(pairs), 0.0, atol=1e-6)
    np.testing.assert_allclose(gradient(fn, pairs), 0.0, atol=1e-5)


@pytest.mark.parametrize(
  ('name', 'value'),
  [
    *(('dpo', np.log(2)), ('dpo_norm', np.log(2)), ('robust', np.log(2))),
    *(('hinge', 1.0), ('nca', 2 * np.log(2)), ('bco', 2 * np.log(2))),
    *(('apo_zero', 1.0), ('apo_down', 1.0), ('aot', np.log(2))),
    *(('aot_unpaired', np.log(2)), ('dpop', np.log(2))),
    *(('discopop', 0.5 * np.log(2) + 0.5), ('ipo', 0.25 / 0.3**2)),
    ('sppo', 0.5 / 0.3**2),
  ],
)
def test_values_at_the_reference(name, value):
  pairs = random_pairs()
  pairs = pairs.replace(reference=pairs.policy)
  np.testing.assert_allclose(_loss(name)(pairs), value, rtol=1e-6)


def test_dpop_above_the_reference_is_dpo_and_below_it_is_steeper():
  pairs = random_pairs()
  up = pairs.replace(
    policy=pairs.policy.at[:, 0].set(pairs.reference[:, 0] + 1)
  )
  _assert_same(_loss('dpop'), _loss('dpo'), up)
  down = pairs_at([-1.0, -2.0])
  # h = 1, but beta (h - penalty) is what counts.
  np.testing.assert_allclose(
    _loss('dpop', penalty=5.0)(down), -jax.nn.log_sigmoid(-1.2), rtol=1e-6
  )
  assert gradient(_loss('dpop', penalty=5.0), down)[0, 0] < -0.3 * 6 * 0.5


@pytest.mark.parametrize('temperature', [0.05, 0.5])
def test_discopop_is_logistic_far_below_0_and_exponential_far_above(
  temperature,
):
  fn = _loss('discopop', beta=1.0, temperature=temperature)
  low, high = pairs_at([-40.0, 0.0]), pairs_at([40.0, 0.0])
  np.testing.assert_allclose(fn(low), 40.0, rtol=1e-6)
  np.testing.assert_allclose(fn(high), np.exp(-40.0), rtol=1e-4)
  np.testing.assert_allclose(gradient(fn, low), [[-1.0, 1.0]], rtol=1e-5)


@pytest.mark.parametrize(('name', 'sign'), [('apo_zero', -1), ('apo_down', 1)])
def test_apo_is_bounded_and_moves_the_preferred_answer_as_named(name, sign):
  pairs = random_pairs(scale=30.0)
  loss = _loss(name)(pairs)
  assert ((loss >= 0) & (loss <= 2)).all()
  # At the reference, the other answer being far below its own.
  grads = gradient(_loss(name), pairs_at([0.0, -20.0]))
  assert np.sign(grads[0, 0]) == sign and grads[0, 1] > 0


# Losses that never rise with the preferred answer's log-probability, and those
# that never fall with the rejected one's.
FALLING = [
  *('dpo', 'dpo_norm', 'robust', 'hinge', 'apo_zero', 'dpop', 'slic', 'simpo'),
  *('orpo', 'cpo', 'unlikelihood', 'preferred_ft', 'bco'),
]
RISING = [*FALLING, 'nca', 'apo_down']


@pytest.mark.parametrize('name', RISING)
def test_monotone_in_both_answers(name):
  options = dict(shift=0.4) if name == 'bco' else {}
  grid = np.linspace(-40, -0.01, 21)
  rows = np.stack(np.meshgrid(grid, grid), axis=-1).reshape(-1, 2)
  grads = gradient(_loss(name, **options), pairs_at(rows, -9.0))
  assert (grads[:, 1] >= 0).all()
  if name in FALLING:
    assert (grads[:, 0] <= 0).all() and (grads[:, 0] < 0).any()


@pytest.mark.parametrize('name', ['aot', 'aot_unpaired'])
def test_aot_of_one_pair_is_dpo(name):
  _assert_same(_loss(name), _loss('dpo'), random_pairs(shape=(1,)))


def test_aot_of_sorted_pairs_is_dpo():
  pairs = random_pairs()
  margins = jnp.sort(pairs.reference[:, 0] - pairs.reference[:, 1])
  pairs = pairs.replace(
    policy=jnp.stack([2 * margins, 0 * margins], axis=-1),
    reference=jnp.stack([margins, 0 * margins], axis=-1),
  )
  _assert_same(_loss('aot'), _loss('dpo'), pairs)


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(st.integers(0, 10**6))
def test_aot_is_the_cheapest_matching(seed):
  # The cost is convex in the difference, so sorting both sides is best.
  pairs = random_pairs(seed)
  assert _loss('aot')(pairs).sum() <= _loss('dpo')(pairs).sum() + 1e-4
  other = pairs.replace(
    policy=pairs.policy.at[:, 1].set(jnp.roll(pairs.policy[:, 1], seed % 7)),
    reference=pairs.reference.at[:, 1].set(
      jnp.roll(pairs.reference[:, 1], seed % 7)
    ),
  )
  least = _loss('aot_unpaired')(pairs).sum()
  assert least <= _loss('dpo')(other).sum() + 1e-4
  np.testing.assert_allclose(
    _loss('aot_unpaired')(other).sum(), least, rtol=1e-5
  )


def test_ties_in_aot_have_a_partner_each():
  # With equal margins of the policy any matching is one with all partners.
  pairs = random_pairs()
  tied = pairs.replace(policy=jnp.broadcast_to(pairs.policy[:1], (7, 2)))
  np.testing.assert_allclose(
    _loss('aot')(tied).sum(), _loss('dpo')(tied).sum(), rtol=1e-5
  )


def test_bco_holds_its_shift_fixed_and_the_shift_is_the_mean_reward():
  pairs, fn = random_pairs(), _loss('bco')
  rewards = 0.3 * (np.asarray(pairs.policy) - np.asarray(pairs.reference))
  shift = losses.coupled.bco_shift(pairs, beta=0.3)
  np.testing.assert_allclose(shift, rewards.mean(), rtol=1e-5)
  _assert_same(fn, _loss('bco', shift=shift), pairs)
  # Moving all rewards moves the shift: the loss stays.
  moved = pairs.replace(policy=pairs.policy + 5.0)
  np.testing.assert_allclose(fn(moved), fn(pairs), rtol=1e-4)


def test_nca_is_half_of_bco_and_a_pull_to_the_reference():
  pairs = random_pairs()
  a = 0.3 * (pairs.policy - pairs.reference)[:, 0]
  anchor = jnp.logaddexp(0, a) + jnp.logaddexp(0, -a)
  bco = _loss('bco', shift=0.0)(pairs)
  np.testing.assert_allclose(_loss('nca')(pairs), (bco + anchor) / 2, rtol=1e-5)
