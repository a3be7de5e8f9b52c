"""Copies of parameters between the host and sharded devices.

  python -m tests.weights.device_transfer_test ADDRESS INDEX FOLDER OUT

is one of two processes that load and save collectively.
"""

import dataclasses
import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from dpo_jax import weights
from dpo_jax.models import parallel
from dpo_jax.training import fingerprints, sharding
from dpo_jax.weights import device_transfer
from tests import forests

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = dataclasses.replace(
  forests.CONFIG, vocab_size=64, tie_embeddings=False
)
SPECS = [
  (),
  ('data',),
  (None, 'fsdp'),
  ('fsdp', ('data', 'tensor')),
  (('tensor', 'fsdp', 'data'),),
]


@pytest.fixture(name='block')
def small_blocks(monkeypatch):
  """Fetches only some rows of each leaf at a time."""
  monkeypatch.setattr(device_transfer, '_FETCH_BYTES', 500)


@pytest.mark.parametrize(
  ('layers', 'spec'),
  [(None, spec) for spec in SPECS]
  + [(4, (None, *spec)) for spec in SPECS]
  + [(4, ('fsdp', 'data'))],
)
def test_a_leaf_comes_back_as_it_went(layers, spec, block):
  """For all shardings, whole or layer by layer, in blocks of rows."""
  rng = np.random.default_rng(0)
  shape = (8, 24) if layers is None else (layers, 8, 24)
  value = rng.standard_normal(shape).astype(np.float32)
  mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
  place = NamedSharding(mesh, PartitionSpec(*spec))
  leaf = device_transfer.LeafBuilder(shape, value.dtype, place)
  places = {str(i) for i in place.devices_indices_map(shape).values()}
  part = np.prod(place.shard_shape(shape)) * value.itemsize
  assert sum(x.nbytes for x in leaf._shards.values()) == len(places) * part
  for layer in [None] if layers is None else range(layers):
    leaf.fill(value if layer is None else value[layer], layer)
  array = leaf.to_devices()
  assert array.sharding == place
  for shard in array.addressable_shards:
    np.testing.assert_array_equal(shard.data, value[shard.index])
  for layer in [None] if layers is None else range(layers):
    found = device_transfer.fetch(array, layer)
    expected = value if layer is None else value[layer]
    np.testing.assert_array_equal(found, expected)


def test_processes_exchange_no_more_than_they_fetch():
  """The program that gathers rows of an array split over processes."""
  mesh = sharding.make_mesh(data=1, fsdp=2, tensor=4)
  for spec in ((None, 'fsdp', 'tensor'), ('tensor', 'fsdp')):
    place = NamedSharding(mesh, PartitionSpec(*spec))
    leaf = jax.ShapeDtypeStruct((64, 32, 32), np.float32, sharding=place)
    program = device_transfer._slice_rows.lower(
      leaf, 0, 1, place, False
    ).compile()
    used = program.memory_analysis()
    parts = 4 if spec[0] else 1
    assert used.output_size_in_bytes == parts * 32 * 32 * 4
    assert used.temp_size_in_bytes < 3 * used.output_size_in_bytes


def test_a_leaf_on_one_cpu_is_not_copied():
  """Neither to the device nor back: JAX uses the NumPy array's memory."""
  one = sharding.replicated(sharding.make_mesh(devices=1))
  for place in (None, one):
    leaf = device_transfer.LeafBuilder((4, 32, 32), np.dtype(np.float32), place)
    (part,) = leaf._shards.values()
    array = leaf.to_devices()
    assert array.unsafe_buffer_pointer() == part.ctypes.data
    assert device_transfer.fetch(array, None).ctypes.data == part.ctypes.data


def _join(address: str, index: int, folder: str, out: str) -> dict:
  """The results of one of two processes with two devices each."""
  jax.config.update('jax_num_cpu_devices', 2)
  jax.distributed.initialize(address, 2, index, initialization_timeout=200)
  device_transfer._FETCH_BYTES = 500
  mesh = sharding.make_mesh(data=1, fsdp=2, tensor=2)
  config = weights.read_config(folder)
  places = parallel.shardings(mesh, config)
  _, params = weights.load(folder, shardings=places)
  leaves = jax.tree.leaves(params)
  seen = {
    'addressable': [leaf.is_fully_addressable for leaf in leaves],
    'fingerprint': fingerprints.of_params(params),
  }
  # Only the path of process 0 is used.
  weights.save(f'{out}/saved{index or ""}', config, params)
  try:
    weights.save(f'{out}/saved', config, params)
  except (FileExistsError, RuntimeError) as error:
    seen['exists'] = f'{type(error).__name__}: {error}'
  too_large = jax.tree.map(lambda x: x * 1e9, params)
  try:
    weights.save(f'{out}/float16', config, too_large, dtype=np.float16)
  except (ValueError, RuntimeError) as error:
    seen['overflow'] = f'{type(error).__name__}: {error}'
  return seen


@pytest.mark.long
def test_two_processes_load_and_save_like_one(tmp_path):
  params = forests.params(0, CONFIG)
  weights.save(tmp_path / 'one', CONFIG, params)
  with socket.socket() as s:
    s.bind(('localhost', 0))
    address = f'localhost:{s.getsockname()[1]}'
  command = [
    sys.executable,
    '-m',
    'tests.weights.device_transfer_test',
    address,
  ]
  workers = [
    subprocess.Popen(
      [*command, str(i), str(tmp_path / 'one'), str(tmp_path)],
      cwd=ROOT,
      env=dict(os.environ, PYTHONPATH=str(ROOT)),
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for i in range(2)
  ]
  try:
    ended = [worker.communicate(timeout=300) for worker in workers]
  finally:
    for worker in workers:
      worker.kill()
  for worker, (_, err) in zip(workers, ended):
    assert not worker.returncode, err
  first, second = (json.loads(out.splitlines()[-1]) for out, _ in ended)
  assert not any(first['addressable'])
  assert (
    first['fingerprint']
    == second['fingerprint']
    == fingerprints.of_params(params)
  )
  assert sorted(path.name for path in tmp_path.iterdir()) == ['one', 'saved']
  for name in ('config.json', 'model.safetensors'):
    one, saved = (tmp_path / x / name for x in ('one', 'saved'))
    assert one.read_bytes() == saved.read_bytes()
  told = 'RuntimeError: Process 0 did not save the parameters: '
  assert first['exists'].startswith('FileExistsError: ')
  assert second['exists'] == told + first['exists']
  assert first['overflow'].startswith('ValueError: ')
  assert second['overflow'] == told + first['overflow']


if __name__ == '__main__':
  address, index, *paths = sys.argv[1:]
  print(json.dumps(_join(address, int(index), *paths)))
