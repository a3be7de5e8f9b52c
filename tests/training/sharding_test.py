"""Eight devices give one device's numbers, and only ever reduce."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dpo_jax import models
from dpo_jax.data import batches
from dpo_jax.losses import logprobs
from dpo_jax.methods import dpo, kto, sft
from dpo_jax.training import sharding, step
from tests import forests

COLLECTIVES = re.compile(
  r'\b(all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter|'
  r'collective-broadcast|ragged-all-to-all)(?:-start)?\('
)


def _coupled(policy):
  """DPO's scores; the objective compares every pair with their mean."""
  base = dpo.make(beta=0.5, reference='in_step', logprob_chunk=8)(policy)

  def objective(scores, batch, aux):
    sums = logprobs.slot_sums(scores['logps'], batch)
    pairs = logprobs.example_slots(sums, batch)
    margins, weight = pairs[..., 0] - pairs[..., 1], batch.example_weight_RxE
    mean = (margins * weight).sum() / weight.sum()
    loss = (jnp.square(margins - mean) * weight).sum()
    return loss, weight.sum(), {'margin': (mean, 1)}

  return base._replace(objective=objective, coupled=True)


METHODS = {
  'coupled': (2, _coupled),
  'dpo': (
    2,
    lambda policy: dpo.make(beta=0.5, reference='in_step', logprob_chunk=8)(
      policy
    ),
  ),
  'sft': (1, lambda policy: sft.make(logprob_chunk=8)(policy)),
  'aot': (
    2,
    lambda policy: dpo.make(
      loss='aot', beta=0.5, reference='in_step', logprob_chunk=8
    )(policy),
  ),
  'kto': (
    2,
    lambda policy: kto.make(beta=0.5, reference='in_step', logprob_chunk=8)(
      policy
    ),
  ),
}
# Sorting the pairs of all devices takes their log-ratios to each.
GATHERED = {'aot'}


def _run(name, devices, accumulation_steps):
  arity, make = METHODS[name]
  method = make(models.policy(forests.CONFIG))
  records = forests.random_records(7, num=60, arity=arity)
  if name == 'kto':
    labels = np.arange(len(records.offsets) - len(records) - 1) % 2
    records = dataclasses.replace(records, labels=labels.astype(np.float32))
  batch = batches.train_batches(
    records, 1, 8 * accumulation_steps, 0, batch_size=48, max_shapes=1
  )[0]
  mesh = sharding.make_mesh(data=devices)
  optimizer = optax.sgd(0.1)
  params = sharding.replicate(mesh, forests.params(0))
  frozen = sharding.replicate(mesh, {'reference': forests.params(1)})
  state = step.init_state(method, optimizer, params, jax.random.key(0))
  train_step = step.make_train_step(
    method, optimizer, accumulation_steps=accumulation_steps, max_grad_norm=1.0
  )
  sharded = sharding.shard_rows(mesh, batch)
  text = train_step.lower(state, frozen, sharded).compile().as_text()
  state, metrics = train_step(state, frozen, sharded)
  return jax.device_get((state.params, metrics)), COLLECTIVES.findall(text)


@pytest.mark.parametrize(
  ('name', 'accumulation_steps'),
  [
    ('dpo', 1),
    ('dpo', 2),
    ('sft', 2),
    ('coupled', 2),
    ('aot', 2),
    ('kto', 2),
  ],
)
def test_eight_devices_equal_one(name, accumulation_steps):
  if jax.device_count() < 8:
    pytest.skip('needs eight devices')
  (params, metrics), collectives = _run(name, 8, accumulation_steps)
  (expected_params, expected), none = _run(name, 1, accumulation_steps)
  assert not none
  gathers = {'all-gather'} if name in GATHERED else set()
  assert set(collectives) == {'all-reduce'} | gathers
  for key in expected:
    np.testing.assert_allclose(metrics[key], expected[key], rtol=1e-5)
  forests.assert_trees_close(params, expected_params)


def test_the_pattern_finds_collectives():
  """A program that gathers is caught: the check above can fail."""
  mesh = sharding.make_mesh(data=8)
  x = sharding.shard_rows(mesh, jnp.ones((8, 4)))
  whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  gather = jax.jit(lambda x: jnp.cumsum(x, axis=0), out_shardings=whole)
  found = COLLECTIVES.findall(gather.lower(x).compile().as_text())
  assert set(found) - {'all-reduce'}
  line = '%x = (f32[1,4]{1,0}, f32[1,4]{1,0}) all-to-all(%a, %b), channel_id=1'
  assert COLLECTIVES.findall(line) == ['all-to-all']


@pytest.mark.parametrize('data', [0, -1, 9])
def test_a_mesh_that_does_not_exist_is_an_error(data):
  with pytest.raises(ValueError, match=f'mesh.data is {data}, but there are 8'):
    sharding.make_mesh(data=data)


def test_a_batch_that_does_not_divide_is_an_error():
  mesh = sharding.make_mesh(data=8)
  assert sharding.rows_per_batch(mesh, 32, 2) == 16
  with pytest.raises(ValueError, match='24 examples does not divide into 8'):
    sharding.rows_per_batch(mesh, 24, 2)
