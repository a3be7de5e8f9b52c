"""A sweep's runs have the numbers of runs by themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax import methods, models, types
from dpo_jax.data import batches
from dpo_jax.training import optimizers, step, sweep
from tests import forests

POLICY = models.policy(forests.CONFIG)
RUNS = 2
STEPS = 3
HYPER = {
  'beta': jnp.array([0.05, 0.8]),
  'learning_rate': jnp.array([1e-3, 3e-3]),
  'label_smoothing': jnp.array([0.0, 0.2]),
}


def _build(loss):
  def build(hyper):
    options = (
      {} if loss != 'dpo' else dict(label_smoothing=hyper['label_smoothing'])
    )
    method = methods.METHODS['dpo'](
      loss=loss, beta=hyper['beta'], reference='in_step', **options
    )(POLICY)
    return method, optimizers.adamw(hyper['learning_rate'])

  return build


def _batches(seeds):
  """The batches of each seed, all of one shape."""
  records = forests.random_records(5, num=12)
  placements = [
    batches.Placement(
      records=records, num_batches=STEPS, rows=4, seed=seed, batch_size=8
    )
    for seed in seeds
  ]
  packed = batches.plan_together(placements, max_shapes=1)
  return [[run[i] for i in range(STEPS)] for run in packed]


@pytest.mark.long  # tests/docs_test.py has a quick one.
@pytest.mark.parametrize(
  ('loss', 'own', 'accumulation_steps'),
  [('dpo', False, 1), ('dpo', True, 2), ('bco', False, 2)],
)
def test_a_sweep_gives_the_numbers_of_separate_runs(
  loss, own, accumulation_steps
):
  """own: each run has its own seed, start, reference and batches."""
  build = _build(loss)
  starts = [forests.params(i if own else 0) for i in range(RUNS)]
  data = _batches([i if own else 0 for i in range(RUNS)])
  keys = jax.random.split(jax.random.key(0), RUNS)
  options = dict(accumulation_steps=accumulation_steps, max_grad_norm=1.0)

  def stacked(trees):
    return jax.tree.map(lambda *x: jnp.stack(x), *trees) if own else trees[0]

  params = stacked(starts)
  states = sweep.init_states(build, HYPER, params, keys, own_params=own)
  train_step = sweep.make_train_step(
    build, own_frozen=own, own_batches=own, **options
  )
  frozen, losses = types.Frozen(reference=stacked(starts)), []
  for i in range(STEPS):
    batch = stacked([run[i] for run in data])
    states, metrics = train_step(HYPER, states, frozen, batch)
    losses.append(metrics['loss'][0] / metrics['loss'][1])

  for r in range(RUNS):
    hyper = {name: float(values[r]) for name, values in HYPER.items()}
    method, optimizer = build(hyper)
    state = step.init_state(
      method, optimizer, jax.tree.map(jnp.copy, starts[r]), keys[r]
    )
    alone = step.make_train_step(method, optimizer, **options)
    for i in range(STEPS):
      frozen = types.Frozen(reference=starts[r])
      state, metrics = alone(state, frozen, data[r][i])
      loss = metrics['loss'][0] / metrics['loss'][1]
      np.testing.assert_allclose(losses[i][r], loss, rtol=1e-5)
    swept = jax.tree.map(lambda x, r=r: x[r], states.params)
    forests.assert_trees_close(swept, state.params)
  assert len({round(float(x), 4) for x in losses[-1]}) == RUNS
