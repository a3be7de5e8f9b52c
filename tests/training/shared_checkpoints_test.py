"""Two processes save and restore one state; errors of one reach both."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from dpo_jax import types
from dpo_jax.training import checkpoints, sharding
from tests import states

ROOT = pathlib.Path(__file__).parent.parent.parent
SPLIT = {
  'both': PartitionSpec('data', 'fsdp'),
  'rows': PartitionSpec('data'),
  'columns': PartitionSpec(None, 'data'),
}


def mesh(data, fsdp):
  return sharding.make_mesh(data=data, fsdp=fsdp, devices=data * fsdp)


def values(seed):
  """A state of NumPy arrays; its key is an integer."""
  rng = np.random.default_rng(seed)
  params = {name: rng.standard_normal((8, 12), 'f') for name in (*SPLIT, 'all')}
  params |= {'scalar': np.float32(seed), 'empty': np.zeros((0, 4), np.float32)}
  return types.TrainState(np.int32(seed), params, (), None, seed)


def place(state, mesh):
  """A state of `values` on the devices of all processes."""

  def put(x, spec):
    where = NamedSharding(mesh, spec)
    return jax.make_array_from_callback(x.shape, where, lambda i: x[i])

  params = {
    name: put(x, SPLIT.get(name, PartitionSpec()))
    for name, x in state.params.items()
  }
  key = jax.random.key_data(jax.random.key(state.key))
  return state.replace(
    step=put(state.step, PartitionSpec()),
    params=params,
    key=jax.random.wrap_key_data(put(np.asarray(key), PartitionSpec())),
  )


def like(mesh):
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
    place(values(0), mesh),
  )


def check_equal(state, expected):
  """This process's shards of both states are equal, and so are shardings."""
  for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(expected)):
    assert x.sharding == y.sharding and x.dtype == y.dtype
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
      x, y = jax.random.key_data(x), jax.random.key_data(y)
    for here, there in zip(x.addressable_shards, y.addressable_shards):
      np.testing.assert_array_equal(here.data, there.data)


PROCESS = """
  import errno, json, os, signal, sys
  import jax
  from dpo_jax import assets
  from dpo_jax.training import checkpoint_manifest, checkpoints
  from tests.training import shared_checkpoints_test as t

  folder, port, index = sys.argv[1], sys.argv[2], int(sys.argv[3])
  jax.config.update('jax_num_cpu_devices', 2)
  jax.distributed.initialize(f'127.0.0.1:{port}', 2, index)
  mesh = t.mesh(data=2, fsdp=2)

  def fails(saves, step, module, name, how, where):
    real = getattr(module, name)
    if index == where:
      setattr(module, name, how)
    try:
      saves.save(step, t.place(t.values(step), mesh), {})
      saves.wait()
    except OSError as error:
      print(json.dumps([error.errno, str(error)]), flush=True)
    setattr(module, name, real)

  def full(*args):
    raise OSError(errno.ENOSPC, 'full')

  def die(*args):
    os.kill(os.getpid(), signal.SIGKILL)

  with checkpoints.open(folder, keep=1) as saves:
    step, state, progress = saves.restore(t.like(mesh))
    assert (step, progress) == (1, {'n': 1})
    t.check_equal(state, t.place(t.values(1), mesh))
    # Only process 0's progress is used.
    saves.save(2, t.place(t.values(2), mesh), {'n': index})
    saves.wait()
    fails(saves, 3, assets, 'sha256_file', full, 1)
    fails(saves, 4, checkpoint_manifest, 'write_text', full, 0)
    fails(saves, 5, assets, 'sha256_file', die, 1)
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A folder with checkpoint 1, saved by one process on eight devices."""
  folder = tmp_path_factory.mktemp('saves')
  with checkpoints.open(folder, keep=1) as saves:
    saves.save(1, place(values(1), mesh(data=4, fsdp=2)), {'n': 1})
  return folder


@pytest.fixture(scope='module')
def printed(folder):
  """The lines of two processes; the second was killed during a save."""
  with socket.create_server(('127.0.0.1', 0)) as server:
    port = server.getsockname()[1]
  env = dict(os.environ, PYTHONPATH=str(ROOT), JAX_PLATFORMS='cpu')
  script = [sys.executable, '-c', textwrap.dedent(PROCESS), str(folder)]
  both = [
    subprocess.Popen(
      [*script, str(port), str(index)],
      env=env,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for index in range(2)
  ]
  try:
    texts = [both[1].communicate(timeout=240)]
    assert both[1].returncode == -signal.SIGKILL, texts[0][1][-3000:]
  finally:
    for process in both:
      process.kill()
  texts.insert(0, both[0].communicate())
  return [[json.loads(line) for line in out.splitlines()] for out, _ in texts]


def test_an_error_of_one_process_is_that_of_all(folder, printed):
  first, second = printed
  assert first == second and len(first) == 2
  for (code, text), step in zip(first, (3, 4)):
    assert code == 28
    assert f'No space left on device: checkpoint {step} takes' in text
    assert f"The last good checkpoint is '{folder / '2'}'" in text


def test_one_process_reads_what_two_wrote(folder, printed):
  del printed
  assert sorted(p.name for p in folder.iterdir()) == ['2', '5.unfinished']
  for sizes in (dict(data=2, fsdp=2), dict(data=1, fsdp=4)):
    on = mesh(**sizes)
    with checkpoints.open(folder, keep=1) as saves:
      step, state, progress = saves.restore(like(on))
    assert (step, progress) == (2, {'n': 0})
    expected = place(values(2), on)
    check_equal(state, expected)
    assert states.bits(state) == states.bits(expected)
