"""Settings of all tests, and assets that several of them read."""

import os
import tempfile

import jax
import pytest

from dpo_jax import assets

# Tests compile more than they compute. LLVM's optimiser takes half their time,
# the emitters of fusions two thirds of the rest; jaxlib 0.11 has no others.
flags = '--xla_backend_optimization_level=0'
flags += ' --xla_cpu_parallel_codegen_split_count=1'
if jax.__version_info__ < (0, 11):
  flags += ' --xla_cpu_use_fusion_emitters=false'
os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {flags}'

# Workers, and the commands that tests run, read what others have compiled.
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
  compiled = tempfile.TemporaryDirectory(prefix='dpo_jax_compiled_')
  for name, value in (
    ('jax_compilation_cache_dir', compiled.name),
    ('jax_persistent_cache_min_compile_time_secs', 0.0),
    ('jax_persistent_cache_min_entry_size_bytes', -1),
  ):
    os.environ[name.upper()] = str(value)
    jax.config.update(name, value)

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
