"""The scalar head: its parameters, its numbers, and where there is none."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax import models, types
from dpo_jax.models import adapters
from tests import forests

CONFIGS = {
  tied: dataclasses.replace(forests.CONFIG, tie_embeddings=tied)
  for tied in (True, False)
}


@pytest.mark.parametrize('tied', CONFIGS)
def test_a_scalar_model_has_a_score_instead_of_the_unembedding(tied):
  language = CONFIGS[tied]
  config, params = models.with_scalar_head(
    language, forests.params(0, language), jax.random.key(1), stddev=0.5
  )
  assert config == dataclasses.replace(language, head='scalar')
  shapes = jax.tree.map(jnp.shape, params)
  table = models.param_specs(config)
  is_spec = lambda x: isinstance(x, types.Spec)  # noqa: E731
  assert shapes == jax.tree.map(lambda s: s.shape, table, is_leaf=is_spec)
  assert shapes.keys() == {'embed', 'layers', 'final_norm', 'score'}
  kernel = params['score']['kernel']
  assert kernel.shape == (language.d_model, 1)
  assert 0.25 < float(kernel.std()) < 0.75
  fresh = models.init(jax.random.key(0), config)
  assert jax.tree.map(jnp.shape, fresh) == shapes
  assert models.num_params(config) == sum(
    x.size for x in jax.tree.leaves(params)
  )


def test_a_standard_deviation_of_zero_gives_zeros():
  config, params = models.with_scalar_head(
    forests.CONFIG, forests.params(0), jax.random.key(1), stddev=0
  )
  tokens = jnp.arange(6).reshape(2, 3)
  hidden = models.forward(params, config, tokens)
  assert not models.policy(config).scalar(params, hidden).any()


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_the_product_is_float32_whatever_the_compute_dtype(dtype):
  config, params = models.with_scalar_head(
    forests.CONFIG, forests.params(0), jax.random.key(1), stddev=1.0
  )
  compute = models.Compute(dtype=dtype)
  hidden = models.forward(
    params, config, jnp.arange(8).reshape(2, 4), compute=compute
  )
  assert hidden.dtype == dtype
  got = models.policy(config, compute).scalar(params, hidden)
  assert got.shape == (2, 4) and got.dtype == jnp.float32
  expected = np.float64(hidden) @ np.float64(params['score']['kernel'])[:, 0]
  np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_a_head_alone_reads_the_hidden_states_of_a_language_model():
  params = forests.params(0)
  policy = models.policy(forests.CONFIG)
  _, scalar = models.with_scalar_head(
    forests.CONFIG, params, jax.random.key(1), stddev=1.0
  )
  hidden = models.forward(params, forests.CONFIG, jnp.arange(4)[None])
  np.testing.assert_array_equal(
    policy.scalar({'score': scalar['score']}, hidden),
    policy.scalar(scalar, hidden),
  )


def test_errors():
  params = forests.params(0)
  hidden = jnp.zeros((3, forests.CONFIG.d_model))
  with pytest.raises(ValueError, match=r"parameters are .*without 'score'"):
    models.policy(forests.CONFIG).scalar(params, hidden)
  policy = adapters.from_apply(lambda params, tokens: tokens)
  with pytest.raises(ValueError, match='no scalar head'):
    policy.scalar(params, hidden)
  config, scalar = models.with_scalar_head(
    forests.CONFIG, params, jax.random.key(1), stddev=0
  )
  with pytest.raises(ValueError, match='scalar head already'):
    models.with_scalar_head(config, scalar, jax.random.key(1), stddev=0)
  for logits in (models.logits, models.step_logits):
    with pytest.raises(ValueError, match='logits take a language model'):
      logits(scalar, config, hidden)
  with pytest.raises(ValueError, match='logits take a language model'):
    models.policy(config).head(scalar)
  with pytest.raises(ValueError, match="head is 'vector'"):
    dataclasses.replace(forests.CONFIG, head='vector')
