"""The scalar head of reward and value models: one number a hidden state."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from dpo_jax import types
from dpo_jax.models import config as model_config
from dpo_jax.models import parallel, specs


def scalar(
  params: types.Params,
  config: model_config.ModelConfig,
  hidden: types.Array,
) -> types.Array:
  """f32[...], the product of hidden states [..., D] with the head, in float32.

  params: a tree with 'score', of which only that is read: a scalar model's, or
  that of a head alone, on the hidden states of a language model `config`.
  ValueError if there is no 'score'.
  """
  if 'score' not in params:
    raise ValueError(
      f'The model has no scalar head: its parameters are {sorted(params)}, '
      "without 'score'."
    )
  w = parallel.gather_tree(params['score'], specs.score(config), jnp.float32)
  return jnp.einsum(
    '...d,d->...',
    hidden.astype(jnp.float32),
    w['kernel'][:, 0].astype(jnp.float32),
    precision=jax.lax.Precision.HIGHEST,
  )


def with_scalar_head(
  config: model_config.ModelConfig,
  params: types.Params,
  key: types.Array,
  *,
  stddev: float,
  place: Callable[[types.Array], types.Array] = lambda kernel: kernel,
) -> tuple[model_config.ModelConfig, types.Params]:
  """(config, params) of a scalar model, from those of a language model.

  The unembedding is dropped, and a normal head with this standard deviation is
  added, which 0 makes zeros; place(kernel) puts it on the devices. The other
  arrays are these very ones. ValueError if the model has a scalar head already.
  """
  if config.head == 'scalar':
    raise ValueError('The model has a scalar head already.')
  config = dataclasses.replace(config, head='scalar')
  shape = specs.score(config)['kernel'].shape
  dtype = params['embed']['tokens'].dtype
  kernel = stddev * jax.random.normal(key, shape, dtype)
  trunk = {name: w for name, w in params.items() if name != 'unembed'}
  return config, trunk | {'score': {'kernel': place(kernel)}}
