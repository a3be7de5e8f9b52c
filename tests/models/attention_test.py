"""Attention backends: visibility and cost."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_jax import models
from dpo_jax.models import attention
from tests import forests


def _batch(records, **options):
  options = dict(rows=1, batch_size=4, num_batches=1, seed=0) | options
  return forests.pack(records, **options)[0]


def _visible_by_brute_force(layout, row, window=None):
  """The rule of `types.Layout`, one pair of tokens at a time."""
  segment = layout.segment_RxL[row].tolist()
  position = layout.position_RxL[row].tolist()
  branch = layout.branch_RxL[row].tolist()
  out = np.zeros((len(segment),) * 2, bool)
  for i in range(len(segment)):
    for j in range(len(segment)):
      if segment[i] == 0:
        out[i, j] = i == j
      else:
        same = segment[i] == segment[j] and j <= i
        near = window is None or position[i] - position[j] < window
        out[i, j] = same and near and branch[j] in (0, branch[i])
  return out


@given(seed=st.integers(0, 10_000))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_the_mask_is_the_rule(seed):
  batch = _batch(forests.random_records(seed, num=5), rows=2)
  visible = attention.visible_RxLxL(jax.tree.map(jnp.asarray, batch.layout))
  for row in range(2):
    expected = _visible_by_brute_force(batch.layout, row)
    np.testing.assert_array_equal(visible[row], expected)


@pytest.mark.parametrize('backend', attention.BACKENDS)
@pytest.mark.parametrize(('seed', 'window'), [(0, None), (1, None), (0, 3)])
def test_gradient_support_is_what_a_token_sees(backend, seed, window):
  """d hidden_i / d input_j is zero exactly where j is not visible from i."""
  batch = _batch(forests.random_records(seed, num=5))
  layout = batch.layout
  config = forests.CONFIG
  if window is not None:
    # One layer, or tokens see through the windows of others.
    config = dataclasses.replace(
      config, num_layers=1, local_layers=(True,), window=window
    )
  params = forests.params(seed, config)
  compute = models.Compute(attention=backend)
  length = batch.tokens_RxL.shape[1]
  # Row i of the embedding table is the input of position i alone.
  table = jax.random.normal(jax.random.key(seed), (length, 16))
  tokens = jnp.arange(length)[None]

  @jax.jit
  def outputs(table):
    tree = {**params, 'embed': {'tokens': table}}
    x = models.forward(tree, config, tokens, layout, compute=compute)
    return x[0].sum(axis=-1)

  jacobian = jax.jit(jax.jacobian(outputs))(table)
  moved = np.abs(np.asarray(jacobian)).max(axis=-1) > 0
  real = np.asarray(layout.segment_RxL[0]) > 0
  expected = _visible_by_brute_force(layout, 0, window)
  np.testing.assert_array_equal(moved[real], expected[real])


def _attention_flops(backend, lengths, rows):
  """FLOPs of compiled attention, forward and backward, over `lengths` trees."""
  per_row = len(lengths) // rows
  packed = _batch(
    forests.make([([1], [[1] * (n - 1)], [[0]]) for n in lengths]),
    rows=rows,
    batch_size=len(lengths),
  )
  assert packed.layout.tree_length_RxT.shape == (rows, per_row)
  length = packed.tokens_RxL.shape[1]
  chosen = attention.BACKENDS[backend]

  def loss(q, k, v):
    view = chosen.prepare(packed.layout)
    return chosen.attend(q, k, v, view, 0.1).sum()

  q = jnp.zeros((rows, length, 4, 8))
  k = jnp.zeros((rows, length, 2, 8))
  compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(q, k, k).compile()
  cost = compiled.cost_analysis()
  return (cost[0] if isinstance(cost, list) else cost)['flops']


def test_packing_costs_nothing_in_attention():
  four_rows = _attention_flops('tree', [352] * 4, rows=4)
  one_row = _attention_flops('tree', [352] * 4, rows=1)
  assert one_row <= 1.02 * four_rows
  # The cost without blocks: the square of the row.
  assert _attention_flops('dense', [352] * 4, rows=1) > 4 * one_row


def _temporary_bytes_per_token(lengths):
  packed = _batch(
    forests.make([([1], [[1] * (n - 1)], [[0]]) for n in lengths]),
    batch_size=len(lengths),
  )
  chosen = attention.BACKENDS['tree']
  length = packed.tokens_RxL.shape[1]
  x = jnp.zeros((1, length, 4, 8))
  attend = jax.jit(
    lambda q, k, v: chosen.attend(q, k, v, chosen.prepare(packed.layout), 0.1)
  )
  memory = attend.lower(x, x, x).compile().memory_analysis()
  return memory.temp_size_in_bytes / length


def test_memory_follows_the_trees_not_the_row():
  few = _temporary_bytes_per_token([128] * 4)
  assert _temporary_bytes_per_token([128] * 16) < 1.2 * few
  # A long tree does not pad the shorter ones.
  long = _temporary_bytes_per_token([1024] + [64] * 48)
  assert long < 2 * _temporary_bytes_per_token([1024] * 4)


@pytest.mark.parametrize(
  'remat',
  [
    pytest.param('none', marks=pytest.mark.long),
    'dots',
    pytest.param('full', marks=pytest.mark.long),
  ],
)
def test_remat_and_bfloat16_compute_the_same(remat):
  batch = _batch(forests.random_records(0, num=5))
  params = forests.params(0)
  direction = jax.random.normal(jax.random.key(1), (20, 16))

  def loss(params, **options):
    hidden = models.forward(
      params,
      forests.CONFIG,
      batch.tokens_RxL,
      batch.layout,
      compute=models.Compute(**options),
    )
    return jnp.vdot(direction, hidden[0, :20].astype(jnp.float32))

  def gradient(**options):
    return jax.jit(jax.grad(functools.partial(loss, **options)))(params)

  expected = gradient()
  forests.assert_trees_close(gradient(remat=remat), expected)
  half = gradient(remat=remat, dtype='bfloat16')
  for a, b in zip(jax.tree.leaves(half), jax.tree.leaves(expected)):
    assert a.dtype == jnp.float32
    assert jnp.linalg.norm(a - b) < 0.1 * jnp.linalg.norm(b)


@pytest.mark.parametrize('field', ['dtype', 'remat', 'attention'])
def test_unknown_choices_are_errors(field):
  with pytest.raises(ValueError, match='Unknown'):
    models.Compute(**{field: 'nope'})
