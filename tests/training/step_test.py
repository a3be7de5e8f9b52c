"""The train step: exact in every split, safe when a number is not finite."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dpo_jax import models, types
from dpo_jax.data import batches
from dpo_jax.losses import logprobs
from dpo_jax.methods import dpo
from dpo_jax.training import step
from tests import forests

POLICY = models.policy(forests.CONFIG)


def _coupled_method():
  """DPO's scores under an objective that mixes all examples of the batch.

  The squared deviation of the margins from their batch mean: its gradient is
  wrong if any micro-batch uses its own mean.
  """
  base = dpo.make(beta=0.5, reference='in_step')(POLICY)

  def objective(scores, batch, aux):
    sums = logprobs.slot_sums(scores['logps'], batch)
    pairs = logprobs.example_slots(sums, batch)
    margins = pairs[..., 0] - pairs[..., 1]
    weight = batch.example_weight_RxE
    count = weight.sum()
    mean = (margins * weight).sum() / count
    loss = (jnp.square(margins - mean) * weight).sum()
    metrics = {'margin': ((margins * weight).sum(), count)}
    return loss + aux * mean, count, metrics

  return base._replace(
    objective=objective,
    coupled=True,
    init_aux=lambda reference: jnp.float32(1.0),
    update=lambda aux, params, metrics: aux + metrics['margin'][0],
  )


METHODS = {
  'dpo': lambda: dpo.make(beta=0.5, reference='in_step')(POLICY),
  'coupled': _coupled_method,
  'aot': lambda: dpo.make(loss='aot', beta=0.5, reference='in_step')(POLICY),
  # Its means so far are part of the state.
  'bco': lambda: dpo.make(loss='bco', beta=0.5, reference='in_step')(POLICY),
  'wpo': lambda: dpo.make(weighting='wpo', beta=0.5, reference='in_step')(
    POLICY
  ),
}


@functools.cache
def _batch(rows=4, batch_size=8):
  records = forests.random_records(5, num=12)
  return batches.train_batches(
    records, 1, rows, 0, batch_size=batch_size, max_shapes=1
  )[0]


def _run(method, batch, optimizer, *, steps=1, params=None, **options):
  params = forests.params(0) if params is None else params
  frozen = types.Frozen(reference=forests.params(1))
  state = step.init_state(
    method, optimizer, jax.tree.map(jnp.copy, params), jax.random.key(0)
  )
  train_step = step.make_train_step(method, optimizer, **options)
  for _ in range(steps):
    state, metrics = train_step(state, frozen, batch)
  return state, metrics


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=[pytest.mark.long] * (name != 'dpo'))
    for name in METHODS
  ],
)
def test_accumulation_changes_nothing(name):
  method = METHODS[name]()
  whole, expected = _run(method, _batch(), optax.sgd(0.1))
  for k in (2, 4):
    split, metrics = _run(
      method, _batch(), optax.sgd(0.1), accumulation_steps=k
    )
    for key in expected:
      np.testing.assert_allclose(metrics[key], expected[key], rtol=2e-5)
    forests.assert_trees_close(
      (split.params, split.aux), (whole.params, whole.aux)
    )


def test_micro_batch_means_would_be_wrong():
  """The coupled objective can tell: a mean over micro-batches differs."""
  method = _coupled_method()._replace(coupled=False)
  _, whole = _run(method, _batch(), optax.sgd(0.1))
  _, split = _run(method, _batch(), optax.sgd(0.1), accumulation_steps=4)
  assert not np.allclose(
    whole['grad_norm'][0], split['grad_norm'][0], rtol=0.01
  )


def test_clipping_scales_to_the_norm_and_reports_the_one_before():
  method = METHODS['dpo']()
  plain, before = _run(method, _batch(), optax.sgd(1.0))
  norm = float(before['grad_norm'][0])
  clipped, after = _run(
    method, _batch(), optax.sgd(1.0), max_grad_norm=norm / 4
  )
  assert float(after['grad_norm'][0]) == pytest.approx(norm, rel=1e-5)
  start = forests.params(0)
  full = jax.tree.map(lambda a, b: a - b, plain.params, start)
  quarter = jax.tree.map(lambda a, b: 4 * (a - b), clipped.params, start)
  forests.assert_trees_close(quarter, full, rtol=1e-4)


def test_a_step_that_is_not_finite_changes_nothing():
  method = METHODS['coupled']()
  optimizer = optax.adam(0.1)
  params = forests.params(0)
  params['final_norm']['scale'] = (
    params['final_norm']['scale'].at[0].set(jnp.nan)
  )
  state, metrics = _run(method, _batch(), optimizer, params=params)
  assert float(metrics['nonfinite'][0]) == 1
  assert int(state.step) == 1
  fresh = step.init_state(method, optimizer, params, jax.random.key(0))
  kept = (state.params, state.opt_state, state.aux)
  jax.tree.map(
    np.testing.assert_array_equal,
    kept,
    (fresh.params, fresh.opt_state, fresh.aux),
  )


def test_state_is_donated():
  method = METHODS['dpo']()
  optimizer = optax.sgd(0.1)
  params = forests.params(0)
  frozen = types.Frozen(reference=forests.params(1))
  state = step.init_state(method, optimizer, params, jax.random.key(0))
  step.make_train_step(method, optimizer)(state, frozen, _batch())
  assert params['embed']['tokens'].is_deleted()


def test_padding_rows_and_examples_count_for_nothing():
  """A batch with an empty row gives what the batch without it gives."""
  records = forests.random_records(6, num=1, min_prompt=1)
  count = int(records.example_counts[0])

  def run(rows):
    batch = forests.pack(
      records, num_batches=1, rows=rows, seed=0, batch_size=count
    )[0]
    return _run(METHODS['dpo'](), batch, optax.sgd(0.1))

  (one, expected), (two, metrics) = run(1), run(2)
  for key in expected:
    np.testing.assert_allclose(metrics[key], expected[key], rtol=1e-5)
  forests.assert_trees_close(one.params, two.params)
