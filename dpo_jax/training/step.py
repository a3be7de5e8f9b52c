"""The one train step, and its forward-only sibling."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dpo_jax import types

Counts = Callable[[types.Batch], types.Metrics]


def init_state(
  method: types.Method, optimizer, params, key, *, reference=None
) -> types.TrainState:
  """The state before step 0, made of `params` themselves, not of a copy.

  reference: parameters of the reference; None where they are `params`.
  """
  return types.TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=optimizer.init(params),
    aux=method.init_aux(params if reference is None else reference),
    key=key,
  )


def make_train_step(
  method: types.Method,
  optimizer: optax.GradientTransformation,
  out_shardings: Any = None,
  counts: Counts | None = None,
  *,
  accumulation_steps: int = 1,
  max_grad_norm: float | None = None,
) -> Callable[..., tuple[types.TrainState, types.Metrics]]:
  """Compiles step(state, frozen, batch) -> (state, metrics); donates `state`.

  See `pure_train_step`, which it is. out_shardings: of what it returns, as for
  `jax.jit`; the state must come out lying as it went in.
  """
  step = pure_train_step(
    method,
    optimizer,
    counts,
    accumulation_steps=accumulation_steps,
    max_grad_norm=max_grad_norm,
  )
  return jax.jit(step, donate_argnums=0, out_shardings=out_shardings)


def pure_train_step(
  method: types.Method,
  optimizer: optax.GradientTransformation,
  counts: Counts | None = None,
  *,
  accumulation_steps: int = 1,
  max_grad_norm: float | None = None,
) -> Callable[..., tuple[types.TrainState, types.Metrics]]:
  """train_step(state, frozen, batch) -> (state, metrics), not compiled.

  The gradient is that of the batch's loss_sum / count, whatever the number of
  accumulation steps: sums are accumulated and divided once. A step whose loss
  or gradient is not finite changes nothing but `step` and is counted in the
  metric `nonfinite`. `grad_norm` is the norm before clipping to
  `max_grad_norm`. counts(batch) -> further metrics, of what the step processes.
  """

  if max_grad_norm is not None and max_grad_norm <= 0:
    raise ValueError(
      f'max_grad_norm is {max_grad_norm}; expected more than 0, or None.'
    )

  def train_step(state: types.TrainState, frozen, batch: types.Batch):
    # From host memory; see `sharding.of_state`.
    state = state.replace(
      opt_state=jax.device_put(state.opt_state, jax.memory.Space.Device)
    )
    key = jax.random.fold_in(state.key, state.step)
    grad_sum, (loss_sum, count, metrics) = batch_gradient(
      method, state.params, frozen, state.aux, batch, key, accumulation_steps
    )
    grads = jax.tree.map(lambda g: g / count, grad_sum)
    grad_norm = optax.tree.norm(grads)
    finite = jnp.isfinite(loss_sum) & jnp.isfinite(grad_norm)
    if max_grad_norm is not None:
      scale = jnp.minimum(1.0, max_grad_norm / grad_norm)
      grads = jax.tree.map(lambda g: g * scale, grads)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    changed = state.replace(
      params=params,
      opt_state=opt_state,
      aux=method.update(state.aux, params, metrics),
    )
    state = jax.tree.map(
      lambda new, old: jnp.where(finite, new, old), changed, state
    )
    metrics = {
      'loss': (loss_sum, count),
      **metrics,
      'grad_norm': (grad_norm, 1),
      'nonfinite': (1 - finite.astype(jnp.int32), 1),
      **(counts(batch) if counts else {}),
    }
    return state.replace(step=state.step + 1), metrics

  return train_step


def make_score(method: types.Method) -> Callable[..., Any]:
  """Compiles score(params, frozen, batch, key) -> what `method.score` gives.

  It is compiled for what a method scores of a batch, without its examples and
  extras: evaluations and the pass over the reference share one program.
  """
  score = jax.jit(method.score)

  def scored_part(batch: types.Batch) -> types.Batch:
    return batch.replace(
      example_slots_RxExK=None,
      example_weight_RxE=None,
      example_record_RxE=None,
      extras_RxN={},
    )

  return lambda params, frozen, batch, key: score(
    params, frozen, scored_part(batch), key
  )


def make_eval_step(
  method: types.Method,
  score: Callable[..., Any],
  by_example: Callable[..., Any] | None = None,
) -> Callable[..., tuple[types.Metrics, Any]]:
  """evaluate(params, frozen, aux, batch, key) -> (metrics, examples).

  metrics: those of the objective, 'loss', and 'examples', their number.
  examples: what by_example(scores, batch, aux) returns; None without.
  `score` is that of `make_score`, `frozen` what it is in training; no gradient
  is formed. The loss of an objective that couples examples (aot, BCO's and
  KTO's baselines) couples those of the batch, and depends on its size.
  """
  by_example = by_example or (lambda scores, batch, aux: None)

  @jax.jit
  def objective(scores, batch, aux):
    loss_sum, count, metrics = method.objective(scores, batch, aux)
    examples = (batch.example_weight_RxE > 0).sum()
    metrics = {'loss': (loss_sum, count), **metrics, 'examples': (examples, 1)}
    return metrics, by_example(scores, batch, aux)

  def evaluate(params, frozen, aux, batch, key):
    _check_arity(method, batch)
    batch = annotated(method, score, frozen, aux, batch, key)
    return objective(score(params, frozen, batch, key), batch, aux)

  return evaluate


def annotated(method: types.Method, score, frozen, aux, batch, key):
  """The batch with what `method.annotate` adds, through `score`.

  `score` is `method.score` or that of `make_score`: where it is the one that
  scores the policy, equal parameters have equal bits.
  """

  def bound(params, frozen, batch):
    return score(params, frozen, batch, key)

  return method.annotate(bound, frozen, aux, batch)


def batch_gradient(
  method: types.Method, params, frozen, aux, batch, key, accumulation_steps: int
):
  """(gradient of loss_sum, (loss_sum, count, metrics)) of a whole batch.

  The same, up to rounding, for every number of accumulation steps.
  """
  _check_arity(method, batch)
  coupled = method.coupled and accumulation_steps > 1
  gradient = _coupled if coupled else _summed
  micro = _split(batch, accumulation_steps)
  return gradient(method, params, frozen, aux, micro, key)


def _check_arity(method: types.Method, batch: types.Batch) -> None:
  arity = batch.example_slots_RxExK.shape[-1]
  if arity != method.arity:
    raise ValueError(
      f'The examples of the batch compare {arity} completions; the method '
      f'takes {method.arity}.'
    )


def _split(batch, steps: int):
  """[R, ...] -> [steps, R / steps, ...], every device keeping its own rows."""
  return jax.tree.map(
    lambda x: x.reshape(-1, steps, *x.shape[1:]).swapaxes(0, 1), batch
  )


def _merge(tree):
  """The inverse of `_split`."""
  return jax.tree.map(
    lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), tree
  )


def _add(a, b):
  return jax.tree.map(jnp.add, a, b)


def _summed(method, params, frozen, aux, micro, key):
  """Gradient of the loss sum, micro-batch by micro-batch.

  Returns (gradient, (loss_sum, count, metrics)), all summed.
  """

  def loss(params, batch):
    batch = annotated(method, method.score, frozen, aux, batch, key)
    scores = method.score(params, frozen, batch, key)
    loss_sum, count, metrics = method.objective(scores, batch, aux)
    return loss_sum, (loss_sum, count, metrics)

  gradient = jax.grad(loss, has_aux=True)
  first = jax.tree.map(lambda x: x[0], micro)
  if jax.tree.leaves(micro)[0].shape[0] == 1:
    return gradient(params, first)
  zeros = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype),
    jax.eval_shape(gradient, params, first),
  )
  total, _ = jax.lax.scan(
    lambda total, batch: (_add(total, gradient(params, batch)), None),
    zeros,
    micro,
  )
  return total


def _coupled(method, params, frozen, aux, micro, key):
  """As `_summed`, for objectives that mix rows: exact in every split.

  Scores all micro-batches, differentiates the objective once with respect to
  the global scores, and pulls the cotangents back micro-batch by micro-batch.
  """

  def score(batch):
    batch = annotated(method, method.score, frozen, aux, batch, key)
    return method.score(params, frozen, batch, key), batch

  scores, micro = jax.lax.map(score, micro)

  def loss(scores):
    out = method.objective(_merge(scores), _merge(micro), aux)
    return out[0], out

  cotangents, out = jax.grad(loss, has_aux=True)(scores)

  def pull_back(total, inputs):
    batch, cotangent = inputs
    _, vjp = jax.vjp(lambda p: method.score(p, frozen, batch, key), params)
    return _add(total, vjp(cotangent)[0]), None

  zeros = jax.tree.map(jnp.zeros_like, params)
  total, _ = jax.lax.scan(pull_back, zeros, (micro, cotangents))
  return total, out
