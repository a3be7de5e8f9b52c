"""FLOPs of models whose layers see different numbers of keys."""

import dataclasses

import numpy as np

from dpo_jax.evals import flops
from dpo_jax.models import attention
from tests import forests


def _counts(batch, config):
  return flops.Counts(*map(float, flops.batch_counts(batch, config.window)))


def test_windows_count_only_what_is_seen():
  batch = forests.pack(
    forests.random_records(3, num=5),
    rows=2,
    batch_size=4,
    num_batches=1,
    seed=3,
  )[0]
  layout, window = batch.layout, 4
  real_RxL = layout.segment_RxL > 0
  visible = np.asarray(attention.visible_RxLxL(layout))
  visible = visible & real_RxL[:, :, None]
  position = layout.position_RxL
  near = position[:, :, None] - position[:, None, :] < window
  everywhere, close = visible.sum(), (visible & near).sum()
  assert close < everywhere
  config = dataclasses.replace(
    forests.CONFIG, num_layers=3, local_layers=(True, False, True), window=4
  )
  plain = dataclasses.replace(config, local_layers=(), window=None)
  saved = flops.training_flops(plain, _counts(batch, plain))
  saved -= flops.training_flops(config, _counts(batch, config))
  # q.k and probs.v, forward and twice backward, in two layers.
  pair = 2 * 2 * 3 * config.num_heads * config.head_dim
  assert saved == 2 * pair * (everywhere - close)
