"""The one table of objectives: each function with its properties.

An objective is registered by a decorator where it is defined; no other list
names it.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

from dpo_jax import types
from dpo_jax.losses import inputs


class LossProperties(NamedTuple):
  """What an objective reads, with its options at their defaults.

  They decide which options of a method apply to it.

  reference: the log-probabilities of the reference; without it, it takes None.
  ratios: policy and reference only as the difference of two log-ratios, where
    the constants of an f-divergence cancel: its scores may replace log-ratios.
  sums: sums of log-probabilities and no lengths, so that other length handling
    and token weights apply. With normalise='tokens' a loss reads lengths.
  coupled: all examples of a batch at once, with their weights.
  mismatched: log-ratios of completions that belong to other prompts.
  """

  reference: bool
  ratios: bool = False
  sums: bool = False
  coupled: bool = False
  mismatched: bool = False


class Loss:
  """A registered objective: its function and its `properties`.

  A call checks the shapes of the container that the function takes, and returns
  its losses as float32, whatever the dtypes of arrays and options are.
  """

  def __init__(
    self,
    fn: Callable[..., types.Array],
    container: type[inputs.LogpsOf],
    properties: LossProperties,
  ):
    self.container, self.properties = container, properties
    functools.update_wrapper(self, fn)

  def __call__(self, logps: inputs.LogpsOf, **options) -> types.Array:
    inputs.check_shapes(logps, self.container)
    return inputs.float32(self.__wrapped__(logps, **options))


# What an objective takes -> its name -> the objective.
LOSSES: dict[type[inputs.LogpsOf], dict[str, Loss]] = {
  types.PairLogps: {},
  types.UnpairedLogps: {},
  types.RankedLogps: {},
}
PREFERENCE_LOSSES = LOSSES[types.PairLogps]
UNPAIRED_LOSSES = LOSSES[types.UnpairedLogps]
RANKING_LOSSES = LOSSES[types.RankedLogps]


def _register(container: type[inputs.LogpsOf], **properties: bool):
  """Decorator: registers a function under its own name; see LossProperties."""

  def register(fn: Callable[..., types.Array]) -> Loss:
    loss = Loss(fn, container, LossProperties(**properties))
    LOSSES[container][fn.__name__] = loss
    return loss

  return register


preference_loss = functools.partial(_register, types.PairLogps)
unpaired_loss = functools.partial(_register, types.UnpairedLogps)
ranking_loss = functools.partial(_register, types.RankedLogps)
