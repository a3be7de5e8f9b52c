"""Model FLOPs: the matmuls that a batch needs, independent of implementation.

A multiply-add counts as two FLOPs; norms, softmax and rotations are not
counted. Padding, masked keys, prompts computed twice and rematerialisation cost
time but are not model FLOPs, so that model FLOPs utilisation (MFU,
arXiv:2204.02311, appendix B) can be compared between implementations.
"""

import math

import numpy as np

from dpo_jax import models, types
from dpo_jax.models import specs


def batch_counts(
  batch: types.Batch, window: int | None = None
) -> tuple[int, int, int]:
  """(tokens, scored tokens, visible query-key pairs) of a batch, no padding.

  A token sees itself and as many tokens as its position, at most `window`.
  """
  real = np.asarray(batch.layout.segment_RxL) > 0
  position = np.asarray(batch.layout.position_RxL)
  scored = np.count_nonzero(np.asarray(batch.score_weight_RxN))
  seen = position[real].astype(np.int64) + 1
  if window is not None:
    seen = np.minimum(seen, window)
  return int(real.sum()), scored, int(seen.sum())


def model_flops(
  config: models.ModelConfig,
  *,
  tokens: int,
  scored: int,
  attention_pairs: int,
  local_pairs: int | None = None,
) -> float:
  """FLOPs of a forward pass.

  tokens: number of tokens. scored: number of tokens that are unembedded.
  attention_pairs: visible (query, key) pairs; local_pairs: those in local
  layers, None: equally many.
  """
  kernels = sum(
    math.prod(spec.shape)
    for name, spec in specs.flat_specs(config).items()
    if name.startswith('layers/') and name.endswith('/kernel')
  )
  unembed = config.vocab_size * config.d_model
  num_local = sum(config.local_layers)
  pairs = (config.num_layers - num_local) * attention_pairs
  pairs += num_local * (attention_pairs if local_pairs is None else local_pairs)
  # q.k and probs.v, for every head.
  attention = 2 * config.num_heads * config.head_dim * pairs
  return 2.0 * (kernels * tokens + unembed * scored + attention)


def training_flops(
  config: models.ModelConfig,
  batch: types.Batch,
  *,
  reference_in_step: bool = False,
) -> float:
  """FLOPs of one step; the backward pass counts as two forward passes.

  reference_in_step: adds a forward pass of a reference of the same sizes.
  """
  tokens, scored, pairs = batch_counts(batch)
  forward = model_flops(
    config,
    tokens=tokens,
    scored=scored,
    attention_pairs=pairs,
    local_pairs=batch_counts(batch, config.window)[-1],
  )
  return (4.0 if reference_in_step else 3.0) * forward
