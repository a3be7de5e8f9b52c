"""What goes into every objective, of every table, and what comes out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax import losses, types
from dpo_jax.losses import logprobs
from tests.losses import pairs

P, K = 6, 3
TABLES = {
  types.PairLogps: losses.PREFERENCE_LOSSES,
  types.UnpairedLogps: losses.UNPAIRED_LOSSES,
  types.RankedLogps: losses.RANKING_LOSSES,
}
ALL = [(c, name) for c, table in TABLES.items() for name in table]
each_loss = pytest.mark.parametrize(('container', 'name'), ALL)
# float64 as JAX's and as NumPy's own.
DTYPES = {
  'float64': lambda x: jnp.asarray(x, jnp.float64),
  'numpy float64': lambda x: np.asarray(x, np.float64),
  'bfloat16': lambda x: jnp.asarray(x, jnp.bfloat16),
  'float32': lambda x: jnp.asarray(x, jnp.float32),
}


def _inputs(container, cast=DTYPES['float32']):
  """A container with all its fields, whose numbers bfloat16 holds."""
  rng = np.random.default_rng(0)

  def logps(*axes):
    return cast(-rng.integers(1, 40, axes) / 4)

  each = dict(weight=cast(np.ones(P)))
  if container is types.PairLogps:
    shape, more = (P, 2), dict(target=logps(P), **each)
  elif container is types.RankedLogps:
    shape, more = (P, K), {}
  else:
    labels = cast(np.arange(P) % 2)
    shape, more = (P,), dict(label=labels, mismatched=logps(P), **each)
  return container(
    policy=logps(*shape),
    reference=logps(*shape),
    length=rng.integers(1, 9, shape),
    **more,
  )


def _bound(container, name, beta=0.3):
  fn = TABLES[container][name]
  return functools.partial(fn, **pairs.demanded(fn, beta=beta))


@each_loss
@pytest.mark.parametrize('dtype', DTYPES)
def test_losses_are_float32(container, name, dtype):
  """Under x64 too, and the numbers are those of float32."""
  expected = _bound(container, name)(_inputs(container))
  with jax.enable_x64(True):
    given = _inputs(container, DTYPES[dtype])
    for beta in (0.3, np.float64(0.3), jnp.float64(0.3)):
      found = _bound(container, name, beta)(given)
      assert found.dtype == jnp.float32
      np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    # Without weights, which stand for ones.
    bare = given.replace(weight=None) if hasattr(given, 'weight') else given
    found = jax.jit(_bound(container, name))(bare)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('name', losses.DIVERGENCES)
def test_divergences_are_float32(name, dtype):
  log_ratio = np.array([-200.0, -3.0, 0.0, 0.5])
  expected = losses.DIVERGENCES[name](log_ratio)
  options = [{}, dict(alpha=np.float64(0.5))] if name == 'alpha' else [{}]
  with jax.enable_x64(True):
    for more in options:
      found = losses.DIVERGENCES[name](DTYPES[dtype](log_ratio), **more)
      assert found.dtype == jnp.float32
      np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize('dtype', DTYPES)
def test_token_scores_are_float32(dtype):
  rng = np.random.default_rng(1)
  table, hidden = rng.normal(size=(4, 11)), rng.normal(size=(1, 5, 4))
  batch = types.Batch(
    *[None] * 2,
    score_index_RxN=np.array([[0, 1, 3, 0]]),
    score_token_RxN=np.array([[3, 10, 0, 0]]),
    score_slot_RxN=np.zeros((1, 4), np.int32),
    score_weight_RxN=np.array([[1.0, 1.0, 1.0, 0.0]], np.float32),
    **dict.fromkeys(('slot_last_RxS', 'slot_length_RxS', 'slot_record_RxS')),
    **dict.fromkeys(('slot_label_RxS', 'example_slots_RxExK')),
    **dict.fromkeys(('example_weight_RxE', 'example_record_RxE')),
  )
  with jax.enable_x64(True):
    cast = DTYPES[dtype]
    head = types.Head.whole(lambda h: h @ cast(table))
    found = logprobs.token_scores(
      head, cast(hidden), batch, chunk_size=2, collisions=True
    )
    assert {x.dtype for x in found.values()} == {jnp.dtype('float32')}
  logits = (hidden @ table)[0, [0, 1, 3]]
  logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  picked = logp[[0, 1, 2], [3, 10, 0]]
  tolerance = 0.1 if dtype == 'bfloat16' else 1e-5
  np.testing.assert_allclose(found['logps'][0, :3], picked, atol=tolerance)


def _misfits(container):
  """(field, a shape that it must not have, what the message expects)."""
  shape = np.shape(_inputs(container).policy)
  each = shape if container is types.UnpairedLogps else shape[:1]
  if container is not types.UnpairedLogps:
    for bad in ((), (P, 0)):
      yield 'policy', bad, r'expected \[\.\.\.'
  if container is types.PairLogps:
    yield 'policy', (P, 1), r'expected \[\.\.\., 2\]'
    yield 'policy', (P, 3), r'expected \[\.\.\., 2\]'
    yield 'policy', (2, P), r'expected \[\.\.\., 2\]'
  given = vars(_inputs(container))
  for field in sorted(given.keys() - {'policy'}):
    whole = field in ('reference', 'length')
    expected = shape if whole else each
    # Those that broadcasting would take without a word are the worst.
    for bad in ((1,) * len(expected), (), (*expected, 1), (P + 1, *shape[1:])):
      yield field, bad, rf'expected \[{", ".join(map(str, expected))}\]'


MISFITS = [(c, *misfit) for c in TABLES for misfit in _misfits(c)]


@pytest.mark.parametrize(('container', 'field', 'bad', 'expected'), MISFITS)
def test_shapes_that_misfit_are_refused(container, field, bad, expected):
  """By every objective, under jit and vmap too."""
  given = _inputs(container).replace(**{field: jnp.zeros(bad)})
  shown = rf'{container.__name__}\.{field} is \[{", ".join(map(str, bad))}\];'
  for name in TABLES[container]:
    fn = _bound(container, name)
    for call in (fn, jax.jit(fn)):
      with pytest.raises(ValueError, match=f'{shown} {expected}'):
        call(given)
  stacked = jax.tree.map(lambda x: jnp.stack([x, x]), given)
  with pytest.raises(ValueError, match=f'{shown} {expected}'):
    jax.vmap(fn)(stacked)


@each_loss
def test_other_containers_are_refused(container, name):
  for other in TABLES.keys() - {container}:
    message = f'{container.__name__}; given: {other.__name__}'
    with pytest.raises(ValueError, match=message):
      _bound(container, name)(_inputs(other))


@each_loss
def test_any_leading_axes_are_taken(container, name):
  given = _inputs(container)
  fn = _bound(container, name)
  expected = fn(given)
  rows = jax.tree.map(lambda x: x.reshape(2, 3, *x.shape[1:]), given)
  np.testing.assert_allclose(fn(rows), expected.reshape(2, 3), rtol=1e-5)
