"""FLOPs: against the matmuls that JAX traces and those that XLA compiles."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.extend import core

from dpo_jax import models
from dpo_jax.data import row_sharding
from dpo_jax.evals import flops
from dpo_jax.models import attention, presets
from dpo_jax.training import sharding
from tests import forests

GPT2 = models.ModelConfig(
  vocab_size=53,
  num_layers=3,
  d_model=16,
  num_heads=2,
  num_kv_heads=2,
  head_dim=8,
  d_ff=40,
  max_positions=64,
  norm='layer',
  positions='learned',
  gated_mlp=False,
  attention_bias=True,
  mlp_bias=True,
)
B, L, SCORED = 2, 12, 5


def _dot_flops(jaxpr) -> int:
  """FLOPs of all matmuls in a traced program, loops multiplied out."""
  total = 0
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == 'dot_general':
      contracted, _ = eqn.params['dimension_numbers'][0]
      inner = math.prod(eqn.invars[0].aval.shape[i] for i in contracted)
      total += 2 * inner * math.prod(eqn.outvars[0].aval.shape)
    times = eqn.params['length'] if eqn.primitive.name == 'scan' else 1
    inner = sum(map(_dot_flops, core.jaxprs_in_params(eqn.params)))
    total += times * inner
  return total


def _score(params, config, tokens_BxL):
  """Logits of some positions, attention over the whole square."""
  compute = models.Compute(attention='dense')
  hidden = models.forward(params, config, tokens_BxL, compute=compute)
  return models.logits(params, config, hidden[:, :SCORED])


def _expected(config):
  return flops.model_flops(
    config, tokens=B * L, scored=B * SCORED, attention_pairs=B * L * L
  )


@pytest.mark.parametrize('config', [forests.CONFIG, GPT2])
def test_forward_counts_every_matmul(config):
  params = jax.eval_shape(lambda: models.init(jax.random.key(0), config))
  tokens = jnp.zeros((B, L), jnp.int32)
  traced = jax.make_jaxpr(lambda p: _score(p, config, tokens))(params)
  assert _dot_flops(traced.jaxpr) == _expected(config)


@pytest.mark.parametrize('config', [forests.CONFIG, GPT2])
def test_training_counts_three_forward_passes(config):
  params = jax.eval_shape(lambda: models.init(jax.random.key(0), config))
  tokens = jnp.zeros((B, L), jnp.int32)

  def loss(params):
    return jax.nn.logsumexp(_score(params, config, tokens), axis=-1).sum()

  traced = jax.make_jaxpr(jax.grad(loss))(params)
  assert _dot_flops(traced.jaxpr) == 3 * _expected(config)


def test_agrees_with_the_compiler():
  """XLA counts norms, softmax and rotations too: more, but little more."""
  config = dataclasses.replace(
    forests.CONFIG, num_layers=1, d_model=128, head_dim=32, d_ff=384
  )
  params = jax.eval_shape(lambda: models.init(jax.random.key(0), config))
  tokens = jnp.zeros((B, L), jnp.int32)
  compiled = jax.jit(lambda p: _score(p, config, tokens)).lower(params)
  counted = compiled.compile().cost_analysis()['flops']
  assert 1 <= counted / _expected(config) < 1.05


@pytest.mark.parametrize('name', ['Llama-3-8B', 'SmolLM2-135M', 'gpt2'])
def test_two_flops_a_weight_and_token(name):
  """All but the embedding tables, norms and biases are in a matmul."""
  config = presets.get(name)
  found = flops.model_flops(config, tokens=1, scored=1, attention_pairs=0)
  others = sum(
    math.prod(spec.shape)
    for path, spec in models.specs.flat_specs(config).items()
    if path.startswith('embed/') or path.endswith(('/scale', '/bias'))
  )
  weights = models.num_params(config) - others
  if config.tie_embeddings:
    weights += config.vocab_size * config.d_model
  assert found == 2 * weights


@given(
  seed=st.integers(0, 10_000),
  arity=st.sampled_from([1, 2, 3]),
  share=st.booleans(),
  rows=st.sampled_from([1, 3]),
)
@settings(max_examples=20, deadline=None, derandomize=True)
def test_counts_of_a_batch_equal_brute_force(seed, arity, share, rows):
  records = forests.random_records(seed, num=5, arity=arity)
  packed = forests.pack(
    records,
    rows=rows,
    batch_size=4,
    num_batches=1,
    seed=seed,
    share_prompt=share,
  )
  batch = packed[0]
  real_RxL = batch.layout.segment_RxL > 0
  visible = np.asarray(attention.visible_RxLxL(batch.layout))
  pairs = (visible & real_RxL[:, :, None]).sum()
  assert flops.batch_counts(batch) == (
    real_RxL.sum(),
    batch.slot_length_RxS.sum(),
    pairs,
    pairs,
  )


def test_a_reference_in_the_step_is_one_more_forward_pass():
  records = forests.random_records(0, num=4)
  packed = forests.pack(records, rows=1, batch_size=4, num_batches=1, seed=0)
  counts = flops.Counts(*map(float, flops.batch_counts(packed[0])))
  forward = flops.model_flops(forests.CONFIG, **counts._asdict())
  for in_step, passes in ((False, 3), (True, 4)):
    assert passes * forward == flops.training_flops(
      forests.CONFIG, counts, reference_in_step=in_step
    )


def test_a_step_counts_what_its_batch_holds():
  """In compiled code, of rows on eight devices, with a sliding window."""
  config = dataclasses.replace(
    forests.CONFIG, window=3, local_layers=(True, False)
  )
  records = forests.random_records(3, num=24)
  packed = forests.pack(records, rows=4, batch_size=8, num_batches=1, seed=0)
  batch = packed[0]
  mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
  count = jax.jit(flops.step_counts(config, unit='pairs'))
  found = count(row_sharding.to_devices(mesh, batch))
  host = flops.Counts(*map(float, flops.batch_counts(batch, window=3)))
  assert host.local_pairs < host.attention_pairs
  assert found['tokens'] == ((batch.layout.segment_RxL > 0).sum(), 1)
  assert found['pairs'] == (8, 1)
  own = flops.training_flops(config, host)
  assert float(found['flops'][0]) == pytest.approx(own, rel=1e-6)
  # Beside it, a model without windows and logits.
  other = dataclasses.replace(forests.CONFIG, head='scalar')
  both = flops.step_counts(config, beside=other)(batch)['flops'][0]
  other_flops = flops.training_flops(
    other, flops.Counts(*map(float, flops.batch_counts(batch)))
  )
  assert 0 < other_flops < own
  assert float(both) == pytest.approx(own + other_flops, rel=1e-6)


def test_a_row_whose_pairs_exceed_an_int32_is_counted():
  length = 70_000
  batch = forests.pack(
    forests.random_records(0, num=4),
    rows=1,
    batch_size=4,
    num_batches=1,
    seed=0,
  )[0]
  layout = batch.layout.replace(
    segment_RxL=np.ones((1, length), np.int32),
    position_RxL=np.arange(length, dtype=np.int32)[None],
  )
  counts = flops.batch_counts(batch.replace(layout=layout))
  expected = length * (length + 1) // 2
  assert float(counts.attention_pairs) == pytest.approx(expected, rel=1e-6)
