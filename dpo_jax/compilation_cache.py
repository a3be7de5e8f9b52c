"""JAX's cache of compiled programs on disk, for the commands that sample."""

import jax

from dpo_jax import assets

MAX_BYTES = 1 << 30


def enable() -> None:
  """Keeps compiled programs in the cache folder, for later runs to load.

  With JAX_COMPILATION_CACHE_DIR they are where it says; with
  JAX_ENABLE_COMPILATION_CACHE=0 there are none. A bounded cache is one that
  JAX locks, so that processes may share it. For programs of one process.
  ValueError if the folder cannot be made.
  """
  if jax.config.jax_compilation_cache_dir is None:
    folder = assets.cache_dir('compiled')
    jax.config.update('jax_compilation_cache_max_size', MAX_BYTES)
    jax.config.update('jax_compilation_cache_dir', str(folder))
