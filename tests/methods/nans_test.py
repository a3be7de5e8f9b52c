"""JAX_DEBUG_NANS finds NaNs that are mistakes, and nothing else is one."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import objectives
from dpo_jax import methods, models, registry, types
from dpo_jax.data import batches, mismatch, store
from dpo_jax.data import records as records_lib
from dpo_jax.training import step as steps_lib
from tests import bigram, forests


def _labelled() -> store.TokenRecords:
  """Records of two completions, a desirable and an undesirable one."""
  rng, builder = np.random.default_rng(5), store.Builder()
  for i in range(5):
    record = records_lib.Record(
      prompt='',
      completions=('', ''),
      examples=((0,), (1,)),
      labels=(True, False),
      file='forest',
      row=i + 1,
    )
    prompt, *answers = (
      rng.integers(0, forests.VOCAB, n).tolist() for n in (3, 2 + i, 4)
    )
    builder.add(record, prompt, answers)
  return builder.finish()


def _records(section) -> store.TokenRecords:
  """Of the kind that a method takes; of each record some tokens are marked."""
  if section['name'] == 'kto':
    found = _labelled()
    if section['loss'] == 'kto':
      found = mismatch.attach(found, seed=0, max_length=64)
    return found
  arity = {'ranking': 4, 'sft': 1}.get(section['name'], 2)
  found = forests.random_records(6, num=5, arity=arity, min_prompt=1)
  if 'correction_weight' in section:
    marks = np.arange(len(found.tokens), dtype=np.float32) % 2
    found = forests.with_extras(found, {'corrected': marks})
  return found


def _method(section, policy):
  method = registry.build(methods.METHODS, section, 'method')()(policy)
  if method.reference != 'cached':
    return method
  # What is scored in the step lies on the way that is watched.
  section = section | dict(reference='in_step')
  return registry.build(methods.METHODS, section, 'method')()(policy)


def _batch(section) -> types.Batch:
  """One that has places left for examples."""
  (packed,) = batches.eval_batches(_records(section), 2, batch_size=30)
  assert (packed[0].example_weight_RxE == 0).any()
  return packed[0]


def _step(method, batch, params, reference):
  """One evaluation and one step."""
  optimizer, key = optax.sgd(0.1), jax.random.key(0)
  state = steps_lib.init_state(
    method, optimizer, params, key, reference=reference
  )
  frozen = method.freeze(reference)
  forests.make_eval_step(method)(params, frozen, state.aux, batch, key)
  train_step = steps_lib.pure_train_step(method, optimizer, max_grad_norm=1.0)
  return jax.jit(train_step)(state, frozen, batch)


SECTIONS = {**objectives.OBJECTIVES, 'sft': dict(name='sft')}
QUICK = ('dpo', 'kto', 'sft', 'wpo')
each_objective = pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=[pytest.mark.long] * (name not in QUICK))
    for name in SECTIONS
  ],
)


def _scores(seed: int, batch):
  """What a policy whose parameters are its scores gives, padding 0."""
  rng, real = np.random.default_rng(seed), batch.score_weight_RxN > 0
  names = ('logps', 'collisions')
  return {
    n: jnp.float32(-rng.gamma(2.0, size=real.shape) * real) for n in names
  }


@each_objective
@pytest.mark.parametrize('start', [False, True])
def test_no_operation_of_an_objective_makes_a_nan(name, start):
  """One by one: under jit only what comes out would be looked at."""
  batch, method = _batch(SECTIONS[name]), _method(SECTIONS[name], bigram.POLICY)
  method = method._replace(score=lambda params, frozen, batch, key: params)
  params, reference = _scores(0, batch), _scores(0 if start else 1, batch)
  with jax.debug_nans(True), jax.disable_jit():
    _step(method, batch, params, reference)


@pytest.mark.parametrize('name', ['wpo', 'sft'])
def test_no_operation_of_scoring_makes_a_nan(name):
  section = SECTIONS[name]
  with jax.debug_nans(True), jax.disable_jit():
    method = _method(section, bigram.POLICY)
    _step(method, _batch(section), bigram.params(0), bigram.params(1))


@pytest.mark.parametrize('attention', ['tree', 'dense'])
def test_no_nan_in_a_model(attention):
  """Nor any in a row, or a tree of it, that is padding."""
  policy = models.policy(forests.CONFIG, models.Compute(attention=attention))
  method, batch = _method(SECTIONS['dpo'], policy), _batch(SECTIONS['dpo'])
  with jax.debug_nans(True):
    _step(method, batch, forests.params(0), forests.params(1))


@each_objective
def test_no_nan_in_a_batch(name):
  for leaf in jax.tree.leaves(_batch(SECTIONS[name])):
    assert np.isfinite(leaf).all()


@pytest.mark.parametrize('name', ['dpo', 'kto', 'sft'])
def test_a_real_nan_is_found(name):
  bad = jax.tree.map(lambda x: x.at[3].set(jnp.nan), bigram.params(0))
  method, batch = _method(SECTIONS[name], bigram.POLICY), _batch(SECTIONS[name])
  with (
    jax.debug_nans(True),
    pytest.raises(FloatingPointError, match='nan'),
  ):
    _step(method, batch, bad, bigram.params(1))
