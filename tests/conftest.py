"""Settings of all tests, and assets that several of them read."""

import os

# Tests compile more than they compute: LLVM's optimiser takes half their time.
os.environ['XLA_FLAGS'] = ' '.join(
  [os.environ.get('XLA_FLAGS', ''), '--xla_backend_optimization_level=0']
)

import jax
import pytest

from dpo_jax import assets

# Simulated devices for the sharding tests; the other tests use the first.
jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')


@pytest.fixture(scope='session')
def smollm2_gguf():
  """The GGUF file of SmolLM2-135M-Instruct."""
  return assets.resolve(assets.SMOLLM2)


@pytest.fixture(scope='session')
def movie_file():
  """Sentences of movie reviews, a tab-separated file: id, rating, text."""
  return assets.resolve(assets.MOVIE_REVIEWS)
