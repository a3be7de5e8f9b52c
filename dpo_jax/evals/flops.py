"""Model FLOPs: the matmuls that a batch calls for, however they are run.

Two FLOPs a multiply-add; norms, softmax and rotations are not counted. Padding,
keys that a query may not see, prompts computed twice and what rematerialisation
repeats cost time but are no model FLOPs, so that a share of the peak (MFU,
arXiv:2204.02311, appendix B) can be compared between implementations.
"""

import math

import numpy as np

from dpo_jax import models, types
from dpo_jax.models import specs


def batch_counts(
  batch: types.Batch, window: int | None = None
) -> tuple[int, int, int]:
  """(real tokens, scored tokens, visible query-key pairs) of NumPy rows.

  A token sees its tree's prompt up to itself and its own completion up to
  itself: as many tokens as its position says, and itself; `window` at most.
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
  """Of a forward pass over `tokens`, unembedded where `scored`.

  `attention_pairs` are the (query, key) pairs whose key is visible,
  `local_pairs` those in local layers; None: as many.
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
  """Of one step on `batch`: the backward pass counts as two forward passes.

  `reference_in_step` adds the forward pass of a reference of the same shape.
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
