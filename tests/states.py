"""Training states of all types, and their bits."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dpo_jax import types

# Values that only their bits tell apart.
STRANGE = np.array(
  [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, 3.4e38, 1 / 3], np.float32
)
NANS = np.array([0x7FC00001, 0xFFC12345], np.uint32).view(np.float32)


def make(seed=0, *, aux=None, impl='threefry2x32') -> types.TrainState:
  """A state that differs in every part from that of another seed."""
  normal = np.random.default_rng(seed).standard_normal((8, 16))
  params = {
    'f32': jnp.asarray(normal, jnp.float32),
    'bf16': jnp.asarray(STRANGE[:, None] + normal, jnp.bfloat16),
    'strange': jnp.asarray(np.concatenate([STRANGE, NANS])),
    'nested': {'a.b': jnp.full((3,), seed), "it's/odd": jnp.zeros((0, 4))},
    'list': [jnp.float32(seed), jnp.asarray([True, False])],
  }
  return types.TrainState(
    step=jnp.int32(2**31 - 1 - seed),
    params=params,
    opt_state=optax.adamw(1e-3).init(params),
    aux=aux,
    key=jax.random.key(seed, impl=impl),
  )


def bits(state):
  """Structure, and of each leaf type, shape and bytes."""

  def of(x):
    is_key = jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
    data = np.asarray(jax.random.key_data(x) if is_key else x)
    return str(x.dtype), data.shape, data.tobytes()

  leaves, structure = jax.tree.flatten(state)
  return structure, [of(x) for x in leaves]
