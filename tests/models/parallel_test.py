"""Trees other than a model's own on a mesh: the numbers of one device."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from jax.sharding import PartitionSpec

from dpo_jax import models, types
from dpo_jax.data import batches, row_sharding
from dpo_jax.methods import reward_model, scoring
from dpo_jax.models import parallel
from dpo_jax.training import sharding
from tests import forests

CONFIG = dataclasses.replace(
  forests.CONFIG, vocab_size=88, num_kv_heads=4, tie_embeddings=False
)
MESHES = {
  '8x1x1': dict(data=8),
  '1x8x1': dict(data=1, fsdp=8),
  '1x1x4': dict(data=1, tensor=4, devices=4),
  '2x2x2': dict(data=2, fsdp=2, tensor=2),
}
RANK = 3
ADAPTED = ('attention/q', 'attention/k', 'attention/o', 'mlp/up', 'mlp/down')


@functools.cache
def _batch():
  records = forests.random_records(7, num=30)
  return batches.train_batches(records, 1, 8, 0, batch_size=24, max_shapes=1)[0]


def _random(seed, *shape):
  return jnp.float32(np.random.default_rng(seed).normal(size=shape))


def _pairs():
  """Low-rank pairs a [Y, in, r], b [Y, r, out] of some kernels."""
  table = traverse_util.flatten_dict(forests.params(0, CONFIG), sep='/')
  out = {}
  for i, name in enumerate(ADAPTED):
    layers, rows, columns = table[f'layers/{name}/kernel'].shape
    out[f'layers/{name}/kernel/a'] = _random(i, layers, rows, RANK)
    out[f'layers/{name}/kernel/b'] = _random(9 + i, layers, RANK, columns)
  return traverse_util.unflatten_dict(out, sep='/')


def _add_pairs(params, base):
  flat = traverse_util.flatten_dict(base, sep='/')
  added = traverse_util.flatten_dict(params, sep='/')
  for name in (f'layers/{name}/kernel' for name in ADAPTED):
    product = jnp.matmul(added[f'{name}/a'], added[f'{name}/b'])
    flat[name] = flat[name] + product / 10
  return traverse_util.unflatten_dict(flat, sep='/')


def _subset():
  params = forests.params(1, CONFIG)
  layers = {'mlp': params['layers']['mlp']}
  return {'layers': layers, 'final_norm': params['final_norm']}


def _join_subset(params, base):
  return {**base, **params, 'layers': {**base['layers'], **params['layers']}}


def _token_logps(policy):
  return scoring.make_score(policy, logprob_chunk=8)


def _scalar_model():
  """A scalar head in the place of the unembedding."""
  params, key = forests.params(1, CONFIG), jax.random.key(3)
  return models.with_scalar_head(CONFIG, params, key, stddev=1.0)[1]


def _head_alone():
  """A value head that shares a language model's trunk."""
  return {'score': _scalar_model()['score']}


def _join_head(params, base):
  return {**base, **params}


_rewards = reward_model.make_score

# name -> what is trained, on a base or not, how both combine, and the score.
TREES = {
  'low-rank': (_pairs, True, _add_pairs, _token_logps),
  'subset': (_subset, True, _join_subset, _token_logps),
  'scalar model': (_scalar_model, False, lambda params, base: params, _rewards),
  'value head': (_head_alone, True, _join_head, _rewards),
}


@functools.cache
def _scores_and_gradient(name, mesh_name):
  """Of a batch; the gradient is that of a weighted sum of the scores."""
  mesh = sharding.make_mesh(**MESHES.get(mesh_name, dict(devices=1)))
  make, on_base, combine, make_score = TREES[name]
  policy = models.policy(CONFIG, models.Compute(), mesh)
  score = make_score(policy._replace(combine=combine))
  frozen = types.Frozen(base=forests.params(0, CONFIG) if on_base else None)

  @jax.jit
  @functools.partial(jax.value_and_grad, has_aux=True)
  def loss(params, batch):
    scores = score(params, frozen, batch, None)
    weights = {k: jnp.sin(jnp.arange(x.size)) for k, x in scores.items()}
    total = sum(jnp.vdot(weights[k], x.ravel()) for k, x in scores.items())
    return total, scores

  batch = row_sharding.to_devices(mesh, _batch())
  (_, scores), gradient = loss(make(), batch)
  return jax.device_get((scores, gradient))


@pytest.mark.parametrize(
  'mesh_name',
  [
    pytest.param(name, marks=[pytest.mark.long] * (name != '2x2x2'))
    for name in MESHES
  ],
)
@pytest.mark.parametrize('name', TREES)
def test_a_mesh_gives_the_numbers_of_one_device(name, mesh_name):
  scores, gradient = _scores_and_gradient(name, mesh_name)
  expected, expected_gradient = _scores_and_gradient(name, 'one')
  forests.assert_trees_close(scores, expected)
  assert all(np.abs(x).max() > 1e-3 for x in jax.tree.leaves(expected_gradient))
  for leaf, other in zip(*map(jax.tree.leaves, (gradient, expected_gradient))):
    forests.assert_trees_close(leaf, other, rtol=1e-4)


def test_how_trees_are_split():
  mesh = sharding.make_mesh(**MESHES['2x2x2'])
  spec = PartitionSpec

  def parts(tree):
    found = parallel.partitions(mesh, CONFIG, tree)
    is_spec = lambda _, x: isinstance(x, spec)  # noqa: E731
    return traverse_util.flatten_dict(found, is_leaf=is_spec, sep='/')

  pairs = parts(_pairs())
  assert pairs['layers/attention/q/kernel/a'] == spec(None, 'fsdp', None)
  assert pairs['layers/attention/q/kernel/b'] == spec(None, None, 'tensor')
  assert pairs['layers/mlp/down/kernel/a'] == spec(None, 'tensor', None)
  assert pairs['layers/mlp/down/kernel/b'] == spec(None, None, 'fsdp')
  whole = parts(forests.params(0, CONFIG))
  assert whole['layers/attention/q/kernel'] == spec(None, 'fsdp', 'tensor')
  assert whole.items() >= parts(_subset()).items()
  head = parts(_scalar_model())
  assert head.pop('score/kernel') == spec()
  assert head.keys() == whole.keys() - {'unembed/kernel'}
  assert whole.items() >= head.items()
  scalar = dataclasses.replace(CONFIG, head='scalar')
  kernel = parallel.shardings(mesh, scalar)['score']['kernel']
  assert kernel.is_fully_replicated
