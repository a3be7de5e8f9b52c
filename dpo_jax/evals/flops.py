"""Model FLOPs: the matmuls that a batch needs, independent of implementation.

A multiply-add counts as two FLOPs; norms, softmax and rotations are not
counted. Padding, masked keys, prompts computed twice and rematerialisation cost
time but are not model FLOPs, so that model FLOPs utilisation (MFU,
arXiv:2204.02311, appendix B) can be compared between implementations.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from dpo_jax import models, types
from dpo_jax.models import specs


class Counts(NamedTuple):
  """f32 scalars of a batch: real tokens, scored tokens, query-key pairs.

  attention_pairs: pairs whose key the query may see; local_pairs: those of
  layers with a sliding window.
  """

  tokens: types.Array
  scored: types.Array
  attention_pairs: types.Array
  local_pairs: types.Array


def batch_counts(batch: types.Batch, window: int | None = None) -> Counts:
  """The counts of a batch, of NumPy or device arrays.

  A token sees its tree's prompt up to itself and its own completion up to
  itself: its position and one more, `window` at most.
  """
  real_RxL = jnp.asarray(batch.layout.segment_RxL) > 0
  seen_RxL = jnp.asarray(batch.layout.position_RxL) + 1
  local_RxL = seen_RxL if window is None else jnp.minimum(seen_RxL, window)

  def total(values_RxL):
    # Two int32 sums a row are exact for 2^21 tokens; one exceeds int32 at 2^16.
    values_RxL = jnp.where(real_RxL, values_RxL, 0)
    high_R, low_R = ((x.sum(1)) for x in (values_RxL >> 10, values_RxL & 1023))
    return (high_R.astype(jnp.float32) * 1024 + low_R).sum()

  scored = (jnp.asarray(batch.score_weight_RxN) > 0).sum()
  return Counts(
    tokens=total(1),
    scored=scored.astype(jnp.float32),
    attention_pairs=total(seen_RxL),
    local_pairs=total(local_RxL),
  )


def model_flops(
  config: models.ModelConfig,
  *,
  tokens,
  scored,
  attention_pairs,
  local_pairs=None,
):
  """FLOPs of a forward pass over `tokens`, unembedded where `scored`.

  The counts are those of `Counts`, as numbers or arrays; `local_pairs` None:
  as many as `attention_pairs`.
  """
  kernels = sum(
    math.prod(spec.shape)
    for name, spec in specs.flat_specs(config).items()
    if name.startswith('layers/') and name.endswith('/kernel')
  )
  unembed = config.vocab_size * config.d_model
  if config.head == 'scalar':
    unembed = 0  # One product with a vector a completion.
  num_local = sum(config.local_layers)
  pairs = (config.num_layers - num_local) * attention_pairs
  pairs += num_local * (attention_pairs if local_pairs is None else local_pairs)
  # q.k and probs.v, for every head.
  attention = 2 * config.num_heads * config.head_dim * pairs
  return 2.0 * (kernels * tokens + unembed * scored + attention)


def training_flops(
  config: models.ModelConfig,
  counts: Counts,
  *,
  reference_in_step: bool = False,
):
  """FLOPs of one step: the backward pass counts as two forward passes.

  reference_in_step: adds a forward pass of a reference of the same sizes.
  """
  passes = 4.0 if reference_in_step else 3.0
  return passes * model_flops(config, **counts._asdict())


def step_counts(
  config: models.ModelConfig,
  *,
  reference_in_step: bool = False,
  unit: str = 'examples',
  beside: models.ModelConfig | None = None,
) -> Callable[[types.Batch], types.Metrics]:
  """counts(batch) -> metrics 'tokens', 'flops' and `unit` of a train step.

  unit: what the examples of a batch are called, 'pairs' or 'examples'. beside:
  another model that is trained on the same batch, such as one of values.
  """

  def counts(batch: types.Batch) -> types.Metrics:
    flops = training_flops(
      config,
      batch_counts(batch, config.window),
      reference_in_step=reference_in_step,
    )
    if beside is not None:
      flops += training_flops(beside, batch_counts(batch, beside.window))
    return {
      'tokens': ((batch.layout.segment_RxL > 0).sum(), 1),
      unit: ((batch.example_weight_RxE > 0).sum(), 1),
      'flops': (flops, 1),
    }

  return counts
