"""Trains many runs at once: the train step, vmapped over hyperparameters.

For adapters and small models, whose single steps do not fill a device:

  def build(hyper):
    method = methods.METHODS['dpo'](beta=hyper['beta'])(policy)
    return method, optimizers.adamw(hyper['learning_rate'])

  hyper = {'beta': jnp.array([0.05, 0.1, 0.5]),
           'learning_rate': jnp.full(3, 1e-5)}
  step = sweep.make_train_step(build)
  states = sweep.init_states(build, hyper, params, keys)
  states, metrics = step(hyper, states, frozen, batch)

Every leaf of `hyper`, of the states and of the metrics has a leading axis, the
run. Hyperparameters that change the program (the kind of optimizer, a batch
size) cannot be swept.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from dpo_jax import types
from dpo_jax.training import step as step_lib

Build = Callable[[Mapping[str, types.Array]], tuple[types.Method, Any]]


def init_states(
  build: Build,
  hyper: Mapping[str, types.Array],
  params: types.Params,
  keys: types.Array,
  *,
  own_params: bool = False,
) -> types.TrainState:
  """The states of all runs before step 0.

  keys: one for each run. own_params: if True, `params` have a leading axis, the
  run; if False, all runs start from the same parameters.
  """
  if not own_params:
    runs = len(keys)
    params = jax.tree.map(
      lambda x: jnp.broadcast_to(x, (runs, *x.shape)), params
    )

  def init(hyper, params, key):
    method, optimizer = build(hyper)
    return step_lib.init_state(method, optimizer, params, key)

  return jax.jit(jax.vmap(init))(dict(hyper), params, keys)


def make_train_step(
  build: Build,
  *,
  accumulation_steps: int = 1,
  max_grad_norm: float | None = None,
  own_frozen: bool = False,
  own_batches: bool = False,
) -> Callable[..., tuple[types.TrainState, types.Metrics]]:
  """Compiles step(hyper, states, frozen, batch) -> (states, metrics).

  Each run's numbers are those of `step.make_train_step`, up to rounding.
  `states` are donated. own_frozen, own_batches: if True, `frozen` or `batch`
  have a leading axis, the run (for seeds that start or shuffle differently); if
  False, all runs share them. `batches.plan_together` gives the batches of
  several seeds one shape.
  """

  def one(hyper, state, frozen, batch):
    method, optimizer = build(hyper)
    step = step_lib.pure_train_step(
      method,
      optimizer,
      accumulation_steps=accumulation_steps,
      max_grad_norm=max_grad_norm,
    )
    return step(state, frozen, batch)

  axes = (0, 0, 0 if own_frozen else None, 0 if own_batches else None)
  return jax.jit(jax.vmap(one, in_axes=axes), donate_argnums=1)
