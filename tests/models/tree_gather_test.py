"""Gathers from rows to blocks and back, against loops over tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax.models import tree_gather
from tests import forests


@pytest.mark.parametrize('cut', [None, 6])
def test_tokens_go_to_their_tree_and_come_back(cut):
  """Also for trees longer than the blocks, whose rest becomes zeros."""
  batch = forests.pack(
    forests.random_records(0, num=6),
    rows=2,
    batch_size=4,
    num_batches=1,
    seed=0,
  )[0]
  layout = batch.layout
  (longest, _), (_, trees) = layout.profile[-1], layout.profile[0]
  size = cut or longest
  x = np.arange(1, layout.segment_RxL.size + 1, dtype=np.float32)
  x = x.reshape(layout.segment_RxL.shape)
  there, back = tree_gather.make_gathers(
    jax.tree.map(jnp.asarray, layout), ((0, 4, trees), (4, size, trees))
  )
  moved = tree_gather.gather(jnp.asarray(x)[..., None], there, back)
  parts = tree_gather.split_blocks(moved, ((0, 4, trees), (4, size, trees)))
  found = np.concatenate(parts, axis=2)[..., 0]
  expected, kept = np.zeros((len(x), trees, size)), np.zeros_like(x)
  for row, segments in enumerate(layout.segment_RxL):
    for tree in range(trees):
      at = np.flatnonzero(segments == tree + 1)[:size]
      expected[row, tree, : len(at)] = x[row, at]
      kept[row, at] = x[row, at]
  np.testing.assert_array_equal(found, expected)
  if cut:
    assert (kept != 0).sum() < (layout.segment_RxL > 0).sum()
  np.testing.assert_array_equal(
    tree_gather.gather(moved, back, there)[..., 0], kept
  )
