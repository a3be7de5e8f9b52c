"""The fingerprint depends on the values, and not on their sharding."""

import re

import jax
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from dpo_jax.training import fingerprints, sharding


def _tree():
  rng = np.random.default_rng(0)
  return {
    'layers': {'kernel': rng.standard_normal((4, 8, 8)).astype(np.float32)},
    'norm': rng.standard_normal(8).astype(ml_dtypes.bfloat16),
    'counts': np.zeros(8, np.int32),
  }


def _swapped(a, b):
  def change(tree):
    kernel = tree['layers']['kernel']
    kernel[a], kernel[b] = kernel[b], kernel[a]

  return change


def _last_bit(tree):
  tree['layers']['kernel'].view(np.uint32)[3, 7, 7] ^= 1


def _sign_of_a_zero(tree):
  tree['counts'].view(np.uint32)[0] = 1 << 31


def _transposed(tree):
  kernel = tree['layers']['kernel']
  kernel[0] = kernel[0].T.copy()


def _reshaped(tree):
  tree['layers']['kernel'] = tree['layers']['kernel'].reshape(2, 16, 8)


def _renamed(tree):
  tree['layers'] = {'bias': tree['layers']['kernel']}


def _moved(tree):
  tree['kernel'] = tree.pop('layers')['kernel']


def _other_dtype(tree):
  tree['counts'] = tree['counts'].view(np.float32)


CHANGES = [
  _last_bit,
  _sign_of_a_zero,
  _swapped((0, 0, 0), (0, 0, 1)),
  _swapped((1, 0, 3), (1, 5, 3)),
  _swapped((0, 2, 3), (3, 2, 3)),
  _swapped((2, 2, 3), (2, 3, 2)),
  _transposed,
  _reshaped,
  _renamed,
  _moved,
  _other_dtype,
  lambda tree: tree.pop('norm'),
]


def test_every_change_gives_another():
  found = [fingerprints.of_params(_tree())]
  for change in CHANGES:
    tree = _tree()
    change(tree)
    found.append(fingerprints.of_params(tree))
  assert len({*found}) == len(found)
  assert all(re.fullmatch('[0-9a-f]{64}', text) for text in found)


def test_it_is_the_same_for_every_sharding():
  mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
  tree = _tree()
  expected = fingerprints.of_params(tree)
  assert fingerprints.of_params(jax.device_put(tree)) == expected
  for spec in ((), ('fsdp',), (('data', 'fsdp'),), ('tensor', 'fsdp', 'data')):

    def put(x, spec=spec):
      part = PartitionSpec(*spec[-x.ndim :])
      return jax.device_put(x, NamedSharding(mesh, part))

    assert fingerprints.of_params(jax.tree.map(put, tree)) == expected


def test_devices_exchange_numbers_and_no_values():
  mesh = sharding.make_mesh(data=1, fsdp=4, tensor=2)
  place = NamedSharding(mesh, PartitionSpec(None, 'fsdp', 'tensor'))
  leaf = jax.ShapeDtypeStruct((8, 64, 64), np.float32, sharding=place)
  program = fingerprints._lanes.lower(leaf, sharding.replicated(mesh)).compile()
  used = program.memory_analysis()
  assert used.argument_size_in_bytes == 8 * 64 * 64 * 4 / 8
  # Stored hashes would take four times the memory of the values.
  assert used.temp_size_in_bytes < 8 * 64 * 4 * fingerprints._LANES + 1024


def test_no_place_has_anothers_hash():
  """Of 10^5 hashes one pair may be equal in 32 bits, none in 64."""
  zeros = np.zeros((10, 100, 100), np.float32)
  places = [np.asarray(x) for x in fingerprints._positions(zeros.shape)]
  wide = (places[0].astype(np.uint64) << 32) | places[1]
  assert len(np.unique(wide)) == zeros.size
  assert len(np.unique(places[0])) > zeros.size * (1 - 1e-3)


def test_wide_values_are_an_error():
  with pytest.raises(ValueError, match=r"\['a'\] is float64; expected"):
    fingerprints.of_params({'a': np.ones(2)})
