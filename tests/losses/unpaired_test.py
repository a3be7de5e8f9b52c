"""KTO and BCO of single completions: closed forms, baselines, padding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax import losses, types
from dpo_jax.losses import unpaired as unpaired_lib
from tests.losses import closed_forms
from tests.losses.pairs import demanded, gradient, random_pairs

LOSSES = losses.UNPAIRED_LOSSES
WEIGHTS = dict(desirable_weight=1.3, undesirable_weight=0.6)
CASES = [
  ('kto', dict(beta=0.3)),
  ('kto', dict(beta=0.1, **WEIGHTS)),
  ('bco', dict(beta=0.3)),
  ('bco', dict(beta=0.1, shift=-0.7, **WEIGHTS)),
]
each_case = pytest.mark.parametrize(('name', 'options'), CASES)
each_loss = pytest.mark.parametrize('name', LOSSES)


def _unpaired(seed=0, num=9, **fields):
  rng = np.random.default_rng(seed)

  def logps(mean):
    return jnp.float32(mean + 3 * rng.normal(size=num))

  return types.UnpairedLogps(
    policy=logps(-20.0),
    reference=logps(-20.0),
    label=jnp.float32(rng.permutation(num) < num // 3),
    length=jnp.full(num, 5, jnp.int32),
    mismatched=logps(1.0),
  ).replace(**fields)


def _bound(name, options=None):
  fn = LOSSES[name]
  return functools.partial(fn, **(options or demanded(fn, beta=0.3)))


def _ratios(unpaired):
  policy = np.asarray(unpaired.policy, np.float64)
  return policy - np.asarray(unpaired.reference, np.float64)


def _closed(name, options, unpaired):
  """Of log-ratios alone: baseline and shift are those of `unpaired`."""
  label = np.asarray(unpaired.label)
  options = dict(options)
  if name == 'kto':
    z0 = max(np.mean(np.asarray(unpaired.mismatched, np.float64)), 0)
    return lambda r: closed_forms.kto(r, label, z0, **options)
  rewards = options['beta'] * _ratios(unpaired)
  mean = (rewards[label == 1].mean() + rewards[label == 0].mean()) / 2
  shift = options.pop('shift', mean)
  return lambda r: closed_forms.unpaired_bco(r, label, shift, **options)


@each_case
def test_values_and_gradients_are_the_closed_form(name, options):
  unpaired = _unpaired()
  closed, r = _closed(name, options, unpaired), _ratios(unpaired)
  fn = _bound(name, options)
  np.testing.assert_allclose(fn(unpaired), closed(r), rtol=1e-5, atol=1e-6)
  expected = closed_forms.gradient(lambda r: closed(r).sum(), r)
  np.testing.assert_allclose(
    gradient(fn, unpaired), expected, rtol=1e-4, atol=1e-6
  )


@pytest.mark.parametrize('mean', [-2.0, 0.0, 2.0])
def test_ktos_baseline_is_the_mean_but_not_below_0(mean):
  unpaired = _unpaired(mismatched=jnp.float32(mean + np.linspace(-1, 1, 9)))
  np.testing.assert_allclose(
    unpaired_lib.kto_baseline(unpaired), max(mean, 0.0), atol=1e-6
  )


def test_kto_at_the_reference_is_half_a_weight():
  unpaired = _unpaired(mismatched=jnp.zeros(9))
  unpaired = unpaired.replace(reference=unpaired.policy)
  expected = np.where(unpaired.label == 1, 1.3 / 2, 0.6 / 2)
  got = _bound('kto', dict(beta=0.1, **WEIGHTS))(unpaired)
  np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_no_gradient_goes_through_the_baseline():
  unpaired, fn = _unpaired(), _bound('kto')
  grads = jax.grad(lambda m: fn(unpaired.replace(mismatched=m)).sum())
  np.testing.assert_array_equal(grads(unpaired.mismatched), 0.0)


@each_loss
def test_desirable_falls_and_undesirable_rises_with_its_likelihood(name):
  unpaired = _unpaired()
  grads = gradient(_bound(name), unpaired)
  np.testing.assert_array_equal(
    np.sign(grads), np.where(unpaired.label == 1, -1, 1)
  )


@each_loss
def test_properties_are_what_the_losses_read(name):
  unpaired, fn, properties = _unpaired(), _bound(name), LOSSES[name].properties
  out = fn(unpaired)
  assert properties.reference and properties.sums and not properties.ratios
  longer = fn(unpaired.replace(length=unpaired.length * 2))
  np.testing.assert_array_equal(longer, out)
  if properties.mismatched:
    with pytest.raises(ValueError, match='mismatched=None'):
      fn(unpaired.replace(mismatched=None))
  else:
    without = fn(unpaired.replace(mismatched=None))
    np.testing.assert_array_equal(without, out)
  moved = unpaired.replace(
    policy=unpaired.policy.at[0].add(5.0),
    mismatched=unpaired.mismatched.at[0].add(5.0),
  )
  assert properties.coupled and not np.allclose(fn(moved)[1:], out[1:])
  with pytest.raises(ValueError, match='reference=None'):
    fn(unpaired.replace(reference=None))


@each_loss
def test_order_and_padding_do_not_matter(name):
  fn, unpaired = _bound(name), _unpaired()
  at = np.random.default_rng(1).permutation(14)
  source, real = np.minimum(at, 8), at < 9
  padded = jax.tree.map(
    lambda x: jnp.where(real, x[source], jnp.array(-1e4, x.dtype)), unpaired
  ).replace(weight=jnp.float32(real))
  out = fn(padded)
  np.testing.assert_allclose(out[real], fn(unpaired)[at[real]], rtol=1e-5)
  np.testing.assert_array_equal(out[~real], 0.0)
  grads = gradient(fn, padded)
  np.testing.assert_allclose(
    grads[real], gradient(fn, unpaired)[at[real]], rtol=1e-4
  )
  np.testing.assert_array_equal(grads[~real], 0.0)
  np.testing.assert_array_equal(fn(padded.replace(weight=0 * out)), 0.0)


def test_a_weight_counts_in_the_means():
  twice = _unpaired(num=3, label=jnp.array([1.0, 0.0, 0.0]))
  twice = jax.tree.map(lambda x: x[np.array([0, 1, 2, 2])], twice)
  weighted = jax.tree.map(lambda x: x[:3], twice)
  weighted = weighted.replace(weight=jnp.array([1.0, 1.0, 2.0]))
  for name in LOSSES:
    fn = _bound(name)
    np.testing.assert_allclose(fn(weighted), fn(twice)[:3], rtol=1e-5)


@each_loss
@pytest.mark.parametrize('label', [0.0, 1.0])
def test_a_batch_of_one_class_is_fine(name, label):
  fn, unpaired = _bound(name), _unpaired(label=jnp.full(9, label))
  assert np.isfinite(fn(unpaired)).all()
  assert np.isfinite(gradient(fn, unpaired)).all()
  mean = 0.3 * _ratios(unpaired).mean()
  shift = unpaired_lib.bco_shift(unpaired, beta=0.3)
  np.testing.assert_allclose(shift, mean, rtol=1e-5)


def test_bco_of_the_halves_of_pairs_is_bco_of_the_pairs():
  pairs = random_pairs()
  rows = types.UnpairedLogps(
    policy=pairs.policy.T.ravel(),
    reference=pairs.reference.T.ravel(),
    label=jnp.repeat(jnp.array([1.0, 0.0]), 7),
    length=pairs.length.T.ravel(),
  )
  paired = losses.PREFERENCE_LOSSES['bco'](pairs, beta=0.3)
  halves = _bound('bco')(rows).reshape(2, 7)
  np.testing.assert_allclose(halves.sum(axis=0), paired, rtol=1e-5)


@each_case
@pytest.mark.parametrize('size', [90.0, 1e4])
def test_finite_at_extremes(name, options, size):
  ends = jnp.array([size, -size, 0.0] * 3)
  unpaired = _unpaired(policy=ends, reference=jnp.zeros(9))
  for mismatched in (ends, jnp.full(9, size), jnp.full(9, -size)):
    fn = _bound(name, options)
    at = unpaired.replace(mismatched=mismatched)
    assert np.isfinite(fn(at)).all()
    assert np.isfinite(gradient(fn, at)).all()


@each_case
def test_leading_axes_jit_vmap_and_bfloat16(name, options):
  fn, unpaired = _bound(name, options), _unpaired(num=6)
  out = fn(unpaired)
  assert out.shape == (6,) and out.dtype == jnp.float32
  rows = jax.tree.map(lambda x: x.reshape(3, 2), unpaired)
  np.testing.assert_allclose(fn(rows), out.reshape(3, 2), rtol=1e-5)
  np.testing.assert_allclose(jax.jit(fn)(unpaired), out, rtol=1e-5)

  def of(beta):
    return LOSSES[name](unpaired, **{**options, 'beta': beta})

  betas = jnp.array([0.1, 0.5])
  np.testing.assert_allclose(jax.vmap(of)(betas)[1], of(0.5), rtol=1e-5)
  low = unpaired.replace(policy=unpaired.policy.astype(jnp.bfloat16))
  high = unpaired.replace(policy=low.policy.astype(jnp.float32))
  assert fn(low).dtype == jnp.float32
  np.testing.assert_array_equal(fn(low), fn(high))


@each_loss
@pytest.mark.parametrize(
  'option', ['beta', 'desirable_weight', 'undesirable_weight']
)
def test_bad_values_are_named(name, option):
  with pytest.raises(ValueError, match=f'{option} is -1'):
    LOSSES[name](_unpaired(), **{'beta': 0.1, option: -1})


def test_class_weights():
  def ratio(num_desirable, num_undesirable, weight=1.0):
    return unpaired_lib.class_weight_ratio(
      desirable_weight=weight,
      undesirable_weight=1.0,
      num_desirable=num_desirable,
      num_undesirable=num_undesirable,
    )

  low, high = unpaired_lib.CLASS_WEIGHT_RANGE
  assert (low, high) == (1.0, 1.5)
  assert ratio(10, 10) == 1.0 and ratio(10, 40) == 0.25
  assert low <= ratio(10, 40, weight=4.5) <= high
  for counts in ((0, 5), (5, 0)):
    with pytest.raises(ValueError, match='some of each'):
      ratio(*counts)
  with pytest.raises(ValueError, match='desirable_weight is 0'):
    ratio(1, 1, weight=0)
