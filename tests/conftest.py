"""Settings of all tests, and assets that several of them read."""

import os

import jax
import pytest

from dpo_jax import assets
from dpo_jax.training import topologies

# Tests compile more than they compute. LLVM's optimiser takes half their time,
# the emitters of fusions two thirds of the rest. jaxlib 0.11 has no others; a
# TPU's compiler, were it loaded, would refuse the flag.
flags = '--xla_backend_optimization_level=0'
flags += ' --xla_cpu_parallel_codegen_split_count=1'
flags += ' --xla_llvm_disable_expensive_passes=true'
# Simulated devices wait for each other. On a busy machine that may take longer
# than 40 seconds, after which XLA would end the process.
flags += ' --xla_cpu_collective_call_terminate_timeout_seconds=600'
if jax.__version_info__ < (0, 11) and (
  jax.config.jax_platforms == 'cpu' or not topologies.has_compiler()
):
  flags += ' --xla_cpu_use_fusion_emitters=false'
os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {flags}'

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
