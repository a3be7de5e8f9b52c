"""Optimizers and schedules by name; the arithmetic is optax's."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dpo_jax import registry

# Parameters whose path matches one of these patterns are not decayed.
NO_DECAY = (r'norm', r'bias')


def decay_mask(no_decay: Sequence[str]) -> Callable:
  """params -> bool tree: False where a pattern matches the path 'a/b/c'.

  Case is ignored, as modules of other libraries have names like LayerNorm_0.
  """

  def decayed(path, _):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    return not any(re.search(p, name, re.IGNORECASE) for p in no_decay)

  return lambda params: jax.tree_util.tree_map_with_path(decayed, params)


def adamw(
  learning_rate,
  *,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  weight_decay: float = 0.0,
  no_decay: Sequence[str] = NO_DECAY,
):
  """AdamW (arXiv:1711.05101), as torch.optim.AdamW."""
  mask = decay_mask(no_decay)
  return optax.adamw(
    learning_rate, b1, b2, eps, weight_decay=weight_decay, mask=mask
  )


def rmsprop(
  learning_rate,
  *,
  decay: float = 0.99,
  eps: float = 1e-8,
  momentum: float | None = None,
  centered: bool = False,
  weight_decay: float = 0.0,
  no_decay: Sequence[str] = NO_DECAY,
):
  """RMSprop as torch.optim.RMSprop: eps outside the root, no bias correction.

  The optimizer of the DPO paper (App. B). Its first step is ten times the
  learning rate times the sign of the gradient. Decay is added to the gradient.
  """
  # optax.rmsprop puts the learning rate before the momentum, torch after it.
  scale = optax.scale_by_stddev if centered else optax.scale_by_rms
  return optax.chain(
    optax.add_decayed_weights(weight_decay, decay_mask(no_decay)),
    scale(decay=decay, eps=eps, initial_scale=0.0, eps_in_sqrt=False),
    optax.trace(momentum) if momentum else optax.identity(),
    optax.scale_by_learning_rate(learning_rate),
  )


def sgd(
  learning_rate,
  *,
  momentum: float | None = None,
  nesterov: bool = False,
  weight_decay: float = 0.0,
  no_decay: Sequence[str] = NO_DECAY,
):
  """SGD as torch.optim.SGD. Decay is added to the gradient."""
  if nesterov and not momentum:
    raise ValueError(f'nesterov=True needs a momentum; given: {momentum}.')
  return optax.chain(
    optax.add_decayed_weights(weight_decay, decay_mask(no_decay)),
    optax.sgd(learning_rate, momentum, nesterov),
  )


def lion(
  learning_rate,
  *,
  b1: float = 0.9,
  b2: float = 0.99,
  weight_decay: float = 0.0,
  no_decay: Sequence[str] = NO_DECAY,
):
  """Lion (arXiv:2302.06675)."""
  mask = decay_mask(no_decay)
  return optax.lion(learning_rate, b1, b2, weight_decay=weight_decay, mask=mask)


def adafactor(
  learning_rate,
  *,
  decay_rate: float = 0.8,
  clipping_threshold: float = 1.0,
  multiply_by_parameter_scale: bool = False,
  weight_decay: float = 0.0,
  no_decay: Sequence[str] = NO_DECAY,
  stacked: str | None = 'layers',
):
  """Adafactor (arXiv:1804.04235) without momentum.

  Its factors, update clipping and parameter scale are defined for single
  matrices, so they are computed for each layer of params[stacked], whose leaves
  stack layers on a leading axis. stacked: None if no leaf is stacked; a missing
  key means the same. Matrices with a side under 128 are not factored, as in
  optax. `weight_decay` is multiplied by the learning rate, as in AdamW.
  """
  core = optax.adafactor(
    learning_rate,
    decay_rate=decay_rate,
    clipping_threshold=clipping_threshold,
    multiply_by_parameter_scale=multiply_by_parameter_scale,
  )
  decay = optax.chain(
    optax.add_decayed_weights(weight_decay, decay_mask(no_decay)),
    optax.scale_by_learning_rate(learning_rate),
  )
  return optax.chain(
    _per_layer(core, stacked),
    _with_updates_of(decay) if weight_decay else optax.identity(),
  )


def _with_updates_of(tx):
  """Adds the updates that `tx` gives for zero gradients."""

  def update(updates, state, params=None):
    zeros = jax.tree.map(jnp.zeros_like, updates)
    extra, state = tx.update(zeros, state, params)
    return jax.tree.map(jnp.add, updates, extra), state

  return optax.GradientTransformation(tx.init, update)


def _per_layer(tx, stacked: str | None):
  """Applies `tx` to each layer of params[stacked], and to the other leaves."""

  def is_stacked(params):
    return isinstance(params, Mapping) and stacked in params

  def split(tree):
    return {k: v for k, v in tree.items() if k != stacked}, tree[stacked]

  def init(params):
    if not is_stacked(params):
      return tx.init(params)
    rest, layers = split(params)
    return tx.init(rest), jax.vmap(tx.init)(layers)

  def update(updates, state, params):
    if not is_stacked(params):
      return tx.update(updates, state, params)
    (rest_u, layer_u), (rest_p, layer_p) = split(updates), split(params)
    rest, rest_state = tx.update(rest_u, state[0], rest_p)
    layers, layer_state = jax.vmap(tx.update)(layer_u, state[1], layer_p)
    return {**rest, stacked: layers}, (rest_state, layer_state)

  return optax.GradientTransformation(init, update)


# name -> fn(learning_rate or schedule, *, options) -> optax transformation
OPTIMIZERS = {
  'adamw': adamw,
  'rmsprop': rmsprop,
  'sgd': sgd,
  'lion': lion,
  'adafactor': adafactor,
}


def _schedule(total_steps, peak, warmup_steps, decay):
  """Warmup peak * (count + 1) / (warmup_steps + 1), then peak * decay(x).

  x is the share of the steps after the warmup that are done. The warmup is that
  of the DPO authors' code.
  """
  if not 0 <= warmup_steps <= total_steps:
    raise ValueError(
      f'schedule.warmup_steps is {warmup_steps}, but the run has {total_steps} '
      'steps in all.'
    )

  def schedule(count):
    warm = jnp.minimum(1.0, (count + 1) / (warmup_steps + 1))
    done = (count - warmup_steps) / max(total_steps - warmup_steps, 1)
    return peak * warm * decay(jnp.clip(done, 0.0, 1.0))

  return schedule


def constant(total_steps: int, *, peak: float, warmup_steps: int = 0):
  """Linear warmup, then `peak`: the DPO paper's schedule (App. B)."""
  return _schedule(total_steps, peak, warmup_steps, jnp.ones_like)


def linear(
  total_steps: int, *, peak: float, warmup_steps: int = 0, final: float = 0.0
):
  """Linear warmup, then linear decay from `peak` to `final` * `peak`."""

  def decay(done):
    return 1.0 - (1.0 - final) * done

  return _schedule(total_steps, peak, warmup_steps, decay)


def cosine(
  total_steps: int, *, peak: float, warmup_steps: int = 0, final: float = 0.0
):
  """Linear warmup, then half a cosine down to `final` * `peak`.

  The decay is Eq. 5 of arXiv:1608.03983 without restarts.
  """

  def decay(done):
    return final + (1.0 - final) * 0.5 * (1.0 + jnp.cos(jnp.pi * done))

  return _schedule(total_steps, peak, warmup_steps, decay)


# name -> fn(total_steps, *, options) -> (update count -> learning rate)
SCHEDULES = {'constant': constant, 'linear': linear, 'cosine': cosine}


def build_schedule(
  section: Mapping[str, Any], total_steps: int
) -> Callable[[int], Any]:
  """The schedule that dict(name='cosine', peak=...) describes."""
  return registry.build(SCHEDULES, section, 'schedule')(total_steps)


def check(
  optimizer: Mapping[str, Any], schedule: Mapping[str, Any], steps: int | None
) -> None:
  """ValueError for wrong options; steps: of the run, None where unknown."""
  build(optimizer, 0.0)
  registry.build(SCHEDULES, schedule, 'schedule')
  if steps is not None:
    build_schedule(schedule, steps)


def build(section: Mapping[str, Any], learning_rate):
  """The optax transformation that dict(name='adamw', ...) describes.

  learning_rate: a number or a schedule.
  """
  return registry.build(OPTIMIZERS, section, 'optimizer')(learning_rate)
