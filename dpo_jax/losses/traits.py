"""The tables of objectives, and what each objective reads.

An objective is registered where it is defined, with the traits that decide what
it can be combined with; nothing else keeps a list of them. What all of them owe
is seen to here: arrays of the right shapes in, float32 out.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

from dpo_jax import types
from dpo_jax.losses import inputs

Loss = Callable[..., types.Array]


class Traits(NamedTuple):
  """What an objective reads, with its options at their defaults.

  reference: the log-probabilities of the reference; without, it takes None.
  ratios: policy and reference only as the difference of two log-ratios, where
    the constants of an f-divergence cancel: its scores may stand for them.
  sums: sums of log-probabilities and no lengths, so that other length handling
    and token weights apply. With normalise='tokens' a loss reads lengths.
  coupled: all of a batch at once: its weights count, and a batch has one loss.
  mismatched: log-ratios of completions with the prompts of others.
  """

  reference: bool
  ratios: bool = False
  sums: bool = False
  coupled: bool = False
  mismatched: bool = False


PREFERENCE_LOSSES: dict[str, Loss] = {}
TRAITS: dict[str, Traits] = {}
UNPAIRED_LOSSES: dict[str, Loss] = {}
UNPAIRED_TRAITS: dict[str, Traits] = {}
RANKING_LOSSES: dict[str, Loss] = {}
RANKING_TRAITS: dict[str, Traits] = {}


def _registrar(
  losses: dict[str, Loss], table: dict[str, Traits], container, **traits
):
  """Decorator: puts a function in both tables, under its own name.

  It takes a `container` whose shapes are checked, and returns float32 whatever
  its arrays and options are.
  """

  def register(fn):
    @functools.wraps(fn)
    def loss(of, **options):
      inputs.check_shapes(of, container)
      return inputs.float32(fn(of, **options))

    losses[fn.__name__] = loss
    table[fn.__name__] = Traits(**traits)
    return loss

  return register


preference_loss = functools.partial(
  _registrar, PREFERENCE_LOSSES, TRAITS, types.PairLogps
)
unpaired_loss = functools.partial(
  _registrar, UNPAIRED_LOSSES, UNPAIRED_TRAITS, types.UnpairedLogps
)
ranking_loss = functools.partial(
  _registrar, RANKING_LOSSES, RANKING_TRAITS, types.RankedLogps
)
