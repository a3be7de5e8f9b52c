"""Methods that train on rollouts: what they are made of."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from dpo_jax import types
from dpo_jax.methods import rollouts as rollouts_lib


class Context(NamedTuple):
  """run_samples: samples of the whole run. rng: of this collection.

  at_temperature_1: whether that is the temperature of the samples.
  """

  run_samples: int
  rng: np.random.Generator
  at_temperature_1: bool


class Prepared(NamedTuple):
  """What a method makes of rollouts and their scores.

  examples: of each prompt. extras_NxT: per-token extras of the batches. aux:
  the method's, after this collection; NumPy arrays where it has changed.
  metrics: names and numbers.
  """

  examples: Sequence[rollouts_lib.Examples]
  extras_NxT: dict[str, np.ndarray]
  aux: Any
  metrics: dict[str, float]


class OnlineMethod(NamedTuple):
  """A method that trains on rollouts.

  method: the `types.Method` of the minibatches.
  policy_of(params) -> the policy's parameters in those that are trained.
  score(params, reference, batch) -> {name: f32[R, N]}: numbers of the samples'
    tokens from one compiled pass over each; None where there are none.
  prepare(rollouts, judged, scored, aux, context) -> `Prepared`. scored:
    {name: f32[N, T]} of `score`.
  num_examples(K) -> the most examples of a prompt with K samples.
  """

  method: types.Method
  policy_of: Callable[[types.Params], types.Params]
  score: Callable[..., dict[str, types.Array]] | None
  prepare: Callable[..., Prepared]
  num_examples: Callable[[int], int]


class OnlineBuilder(NamedTuple):
  """An online method with its options bound, and what it needs.

  build(policy, value_policy=None) -> `OnlineMethod`. has_value: whether there
  is a value model. by_score: whether samples need scores, so that a preference
  is not enough. least_samples: of a prompt. on_policy: whether it reads the
  sampler's log-probabilities, so that samples must be of the policy itself.
  policy_key: of the policy in what is trained; None where it is that alone.
  """

  build: Callable[..., OnlineMethod]
  has_value: bool
  by_score: bool
  least_samples: int
  on_policy: bool
  policy_key: str | None = None
