"""One battery over every pairwise objective: what all of them owe."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax import losses, registry
from tests.losses import closed_forms
from tests.losses.pairs import demanded, gradient, pairs_at, random_pairs

LOSSES = losses.PREFERENCE_LOSSES
# Options beside the defaults, for the closed forms.
MORE = {
  'dpo': [dict(beta=0.05), dict(beta=2.0, label_smoothing=0.2)],
  'robust': [dict(beta=0.1, label_smoothing=0.3)],
  'ipo': [dict(beta=0.1, normalise='tokens')],
  'exo': [dict(beta=0.1, label_smoothing=0.2)],
  'bco': [dict(beta=0.3, shift=0.7)],
  'discopop': [dict(beta=0.1, temperature=0.8)],
  'dpop': [dict(beta=0.1, penalty=2.0)],
  'slic': [
    dict(delta=3.0, target_weight=1.3),
    dict(target='answer', target_weight=0.5),
  ],
  'simpo': [dict(beta=2.0, gamma=1.0)],
  'cpo': [dict(beta=0.1, likelihood_weight=0.2)],
  'unlikelihood': [dict(alpha=1.0)],
  'preferred_ft': [dict(normalise='tokens')],
}
CASES = [
  (name, options)
  for name, fn in LOSSES.items()
  for options in [demanded(fn, beta=0.3), *MORE.get(name, [])]
]
each_case = pytest.mark.parametrize(
  ('name', 'options'), CASES, ids=lambda x: x if isinstance(x, str) else ''
)
each_loss = pytest.mark.parametrize('name', LOSSES)


def _bound(name, options=None):
  fn = LOSSES[name]
  return functools.partial(fn, **(options or demanded(fn, beta=0.3)))


def test_tables_have_the_same_names():
  assert set(LOSSES) == set(closed_forms.PREFERENCE)


@each_loss
def test_options_and_defaults_are_the_documented_ones(name):
  def options(fn):
    return {n: p.default for n, p in registry.options_of(fn).items()}

  assert options(LOSSES[name]) == options(closed_forms.PREFERENCE[name])


@each_case
def test_values_and_gradients_are_the_closed_form(name, options):
  pairs = random_pairs(seed=3)
  exact = closed_forms.pairs_of(pairs)
  closed = functools.partial(closed_forms.PREFERENCE[name], **options)
  if name == 'bco':  # Its gradient holds the shift fixed.
    shift = np.mean([0.3 * exact.a, 0.3 * exact.b])
    closed = functools.partial(closed, shift=options.get('shift', shift))
  np.testing.assert_allclose(
    _bound(name, options)(pairs), closed(exact), rtol=1e-5, atol=1e-6
  )
  weight = np.random.default_rng(4).normal(size=7)

  def total(policy):
    moved = exact._replace(w=policy[:, 0], l=policy[:, 1])
    return (weight * closed(moved)).sum()

  policy = np.stack([exact.w, exact.l], axis=-1)
  expected = closed_forms.gradient(total, policy)
  np.testing.assert_allclose(
    gradient(_bound(name, options), pairs, jnp.float32(weight)),
    expected,
    rtol=2e-5,
    atol=1e-5 * np.abs(expected).max() + 1e-7,
  )


@each_case
def test_any_leading_axes_and_jit_give_the_same(name, options):
  fn, pairs = _bound(name, options), random_pairs(shape=(6,))
  out = fn(pairs)
  assert out.shape == (6,) and out.dtype == jnp.float32
  np.testing.assert_allclose(jax.jit(fn)(pairs), out, rtol=1e-5)
  rows = jax.tree.map(lambda x: x.reshape(3, 2, *x.shape[1:]), pairs)
  np.testing.assert_allclose(fn(rows), out.reshape(3, 2), rtol=1e-5)


@each_loss
def test_vmap_over_each_number_is_separate_calls(name):
  fn, pairs = LOSSES[name], random_pairs()
  given = demanded(fn, beta=0.3)
  numbers = [
    option
    for option, p in registry.options_of(fn).items()
    if option == 'shift' or not isinstance(p.default, str)
  ]
  values = np.array([0.1, 0.2, 0.4], np.float32)
  for option in numbers:

    def of(value, option=option):
      bound = functools.partial(fn, **{**given, option: value})
      return bound(pairs), gradient(bound, pairs)

    swept = jax.jit(jax.vmap(of))(values)
    for i, value in enumerate(values):
      for got, expected in zip(swept, of(float(value))):
        np.testing.assert_allclose(got[i], expected, rtol=1e-4, atol=1e-6)


@each_loss
def test_pairs_meet_only_in_coupled_losses(name):
  fn, pairs = _bound(name), random_pairs()
  out = fn(pairs)
  moved = pairs.replace(policy=pairs.policy.at[0].add(jnp.array([9.0, -4.0])))
  alone = np.array_equal(fn(moved)[1:], out[1:])
  assert alone == (not LOSSES[name].properties.coupled)
  if alone:
    np.testing.assert_allclose(jax.vmap(fn)(pairs), out, rtol=1e-5)


@each_loss
def test_order_of_the_pairs_does_not_matter(name):
  fn, pairs = _bound(name), random_pairs()
  order = np.random.default_rng(0).permutation(7)
  shuffled = jax.tree.map(lambda x: x[order], pairs)
  np.testing.assert_allclose(fn(shuffled), fn(pairs)[order], rtol=1e-5)


@each_loss
def test_lengths_are_read_unless_it_is_of_sums(name):
  fn, pairs = _bound(name), random_pairs()
  longer = pairs.replace(length=pairs.length + jnp.array([[3, 8]]))
  assert np.array_equal(fn(longer), fn(pairs)) == LOSSES[name].properties.sums


@each_loss
def test_constants_of_scores_cancel_where_divergences_apply(name):
  # f'(u) + c(x) in the place of log u, for both answers to each prompt.
  fn = _bound(name)
  pairs = random_pairs(seed=5)
  constant = jax.random.normal(jax.random.key(0), (7, 1))
  moved = pairs.replace(policy=pairs.policy + constant)
  both = moved.replace(reference=pairs.reference + constant)

  def same(a, b):
    return bool(np.allclose(fn(a), fn(b), rtol=1e-4, atol=1e-5))

  if LOSSES[name].properties.ratios:
    assert LOSSES[name].properties.reference
    assert same(moved, pairs) and same(both, pairs)
  elif LOSSES[name].properties.reference and name != 'aot':
    assert same(both, pairs) and not same(moved, pairs)
  if name == 'aot':  # A function of policy and reference, not of ratios.
    ratios = pairs.replace(policy=pairs.policy - pairs.reference)
    assert not same(ratios.replace(reference=pairs.reference * 0), pairs)


@each_loss
def test_a_reference_is_demanded_or_not_looked_at(name):
  fn, pairs = _bound(name), random_pairs()
  if LOSSES[name].properties.reference:
    with pytest.raises(ValueError, match='reference=None'):
      fn(pairs.replace(reference=None))
    grad = jax.grad(lambda r: fn(pairs.replace(reference=r)).sum())
    assert (np.abs(grad(pairs.reference)).sum(axis=0) > 0).all()
  else:
    np.testing.assert_array_equal(fn(pairs.replace(reference=None)), fn(pairs))


@each_loss
def test_bfloat16_inputs_give_the_float32_result(name):
  fn, pairs = _bound(name), random_pairs()

  def cast(dtype, pairs):
    return pairs.replace(
      policy=pairs.policy.astype(dtype),
      reference=pairs.reference.astype(dtype),
      target=pairs.target.astype(dtype),
    )

  low = cast(jnp.bfloat16, pairs)
  out = fn(low)
  assert out.dtype == jnp.float32
  np.testing.assert_array_equal(out, fn(cast(jnp.float32, low)))


def _every_two(values):
  return np.stack(np.meshgrid(values, values), axis=-1).reshape(-1, 2)


def _assert_finite(fn, pairs):
  assert np.isfinite(fn(pairs)).all(), fn(pairs)
  grads = gradient(fn, pairs)
  assert np.isfinite(grads).all(), grads


@each_case
def test_finite_at_extreme_log_probs(name, options):
  rows = _every_two([0.0, -1e-8, -1e-4, -0.7, -1.0, -1e4])
  _assert_finite(_bound(name, options), pairs_at(rows, reference=-1.0))


@each_case
def test_finite_at_extreme_log_ratios(name, options):
  pairs = pairs_at(_every_two([-1e4, -300.0, -90.0, 0.0, 90.0, 1e4]))
  for beta in (0.01, 5.0) if 'beta' in options else ():
    _assert_finite(_bound(name, {**options, 'beta': beta}), pairs)
  _assert_finite(_bound(name, options), pairs)


@pytest.mark.parametrize('divergence', losses.DIVERGENCES)
@pytest.mark.parametrize(
  'name', [n for n, fn in LOSSES.items() if fn.properties.ratios]
)
def test_finite_with_every_divergence_at_extremes(name, divergence):
  score = losses.DIVERGENCES[divergence]
  rows = _every_two([-1e4, -300.0, -90.0, 0.0, 90.0, 1e4])

  def fn(pairs):
    return _bound(name)(pairs.replace(policy=score(pairs.policy)))

  _assert_finite(fn, pairs_at(rows))


@each_loss
def test_padding_is_not_seen_and_has_finite_gradients(name):
  # Padding: no tokens, weight 0, any numbers.
  fn, pairs = _bound(name), random_pairs()
  rng = np.random.default_rng(8)
  at = rng.permutation(12)
  weight = jnp.float32(at < 7)
  source = np.minimum(at, 6)

  def spread(x, wild):
    real = (at < 7).reshape(-1, *[1] * (x.ndim - 1))
    return jnp.where(real, x[source], wild.astype(x.dtype))

  def wild(x):
    return jnp.asarray(rng.choice([-1e4, 0.0, 50.0], size=(12, *x.shape[1:])))

  padded = jax.tree.map(lambda x: spread(x, wild(x)), pairs)
  padded = padded.replace(
    length=spread(pairs.length, jnp.zeros((12, 2))), weight=weight
  )
  np.testing.assert_allclose(fn(padded)[at < 7], fn(pairs)[at[at < 7]], 1e-5)
  grads = gradient(lambda p: jnp.where(weight > 0, fn(p), 0.0), padded)
  np.testing.assert_allclose(
    grads[at < 7], gradient(fn, pairs)[at[at < 7]], rtol=1e-4, atol=1e-6
  )
  np.testing.assert_array_equal(grads[at == 7], 0.0)
  if LOSSES[name].properties.coupled:
    np.testing.assert_array_equal(fn(padded)[at >= 7], 0.0)
  nothing = padded.replace(weight=weight * 0)
  assert np.isfinite(fn(nothing)[at < 7]).all()


BAD = [
  (name, option, value)
  for name, fn in LOSSES.items()
  for option in registry.options_of(fn)
  for value in {
    'beta': (0.0, -1, float('nan'), float('inf'), '0.1'),
    'label_smoothing': (-0.1, 0.5, 1, None),
    'temperature': (0.0, 1.5),
    'penalty': (-1.0,),
    'delta': (-1.0,),
    'target_weight': (-0.1,),
    'gamma': (-0.5,),
    'likelihood_weight': (-1.0,),
    'alpha': (-0.1, 1.1),
    'normalise': ('token', None),
    'target': ('chosn',),
  }.get(option, ())
]


@pytest.mark.parametrize(('name', 'option', 'value'), BAD)
def test_bad_values_are_named(name, option, value):
  fn = LOSSES[name]
  options = {**demanded(fn, beta=0.3), option: value}
  with pytest.raises(ValueError, match=option) as error:
    fn(random_pairs(), **options)
  assert str(value) in str(error.value)
  if option in ('normalise', 'target') and isinstance(value, str):
    assert 'Did you mean' in str(error.value)


def test_exo_has_no_label_smoothing_of_0():
  with pytest.raises(ValueError, match='expected 0 < label'):
    LOSSES['exo'](random_pairs(), beta=0.1, label_smoothing=0.0)


def test_slic_with_an_answer_demands_it():
  with pytest.raises(ValueError, match='target=None'):
    LOSSES['slic'](random_pairs(target=None), target='answer')
