"""No device ever holds a whole copy of parameters that are split over a mesh.

Measured twice, from the files to the step and back: by the buffers that are
alive on a device, looked at while tensors are read and written too, and by
what the compiler says of every program that was compiled on the way.
"""

import dataclasses
import gc

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dpo_jax import models, weights
from dpo_jax.data import batches, row_sharding
from dpo_jax.methods import dpo, sft
from dpo_jax.models import parallel
from dpo_jax.training import sharding, step
from dpo_jax.weights import device_transfer, safetensors_file
from tests import forests

# Wide and deep enough that neither activations nor one layer count.
CONFIG = dataclasses.replace(
  forests.CONFIG,
  vocab_size=64,
  num_layers=16,
  d_model=256,
  num_heads=8,
  num_kv_heads=8,
  head_dim=32,
  d_ff=512,
  tie_embeddings=False,
)
SIZE = 4 * models.num_params(CONFIG)
# Of a whole copy: what a program may take in, give out, or hold beside these.
PROGRAM = 0.75
# Of the trees that a stage should hold: what else there may be.
SPARE = 1.1
OPTIMIZER = optax.adamw(1e-3)
# name -> mesh, accumulation steps, completions of an example, the method.
RUNS = {
  'sft': (dict(data=1, fsdp=8), 1, 1, sft.make(logprob_chunk=8)),
  'dpo': (
    dict(data=1, fsdp=2, tensor=4),
    2,
    2,
    dpo.make(beta=0.5, reference='in_step', logprob_chunk=8),
  ),
}


class Watch:
  """What devices hold from now on, and the programs that are compiled."""

  def __init__(self):
    gc.collect()
    # Held, so that no later buffer lies where one of these did.
    self._others = jax.live_arrays(), _executables()
    self._known = set(_buffers(self._others[0]))
    self._most = 0
    self.stages, self.programs = {}, {}

  def look(self):
    """Keeps the most bytes that a device was seen to hold."""
    held = dict.fromkeys(jax.devices(), 0)
    for (device, at), size in _buffers(jax.live_arrays()).items():
      if (device, at) not in self._known:
        held[device] += size
    self._most = max(self._most, *held.values())

  def looking(self, patch, where, name):
    """Looks before and after each call of a function, too."""
    fn = getattr(where, name)

    def watched(*args):
      self.look()
      out = fn(*args)
      self.look()
      return out

    patch.setattr(where, name, watched)

  def end(self, stage):
    """Its most bytes on a device; its programs' arguments, outputs, other."""
    self.look()
    self.stages[stage], self._most = self._most, 0
    for program in _executables():
      if program not in self._others[1]:
        name = f'{stage}: {program.hlo_modules()[0].name}'
        m = program.get_compiled_memory_stats()
        self.programs[name, id(program)] = (
          m.argument_size_in_bytes,
          m.output_size_in_bytes,
          m.temp_size_in_bytes,
        )
        self._others[1].append(program)


def _executables() -> list:
  return jax.devices()[0].client.live_executables()


def _buffers(arrays) -> dict:
  """(device, place) -> bytes; an array and its shards have them in common."""
  return {
    (shard.device, shard.data.unsafe_buffer_pointer()): shard.data.nbytes
    for array in arrays
    if not array.is_deleted()
    for shard in array.addressable_shards
  }


@pytest.fixture(name='folder', scope='module')
def saved_model(tmp_path_factory):
  folder = tmp_path_factory.mktemp('memory') / 'model'
  params = jax.tree.map(np.asarray, models.init(jax.random.key(0), CONFIG))
  weights.save(folder, CONFIG, params)
  return folder


def _batch(mesh, steps, arity):
  rows = steps * parallel.row_groups(mesh)
  records = forests.random_records(
    7, num=60, arity=arity, max_branches=2, max_prompt=3, max_completion=4
  )
  packed = batches.train_batches(
    records, 1, rows, 0, batch_size=rows, max_shapes=1
  )
  return row_sharding.to_devices(mesh, packed[0])


@pytest.fixture(
  name='run',
  scope='module',
  params=['sft', pytest.param('dpo', marks=pytest.mark.long)],
)
def run_of_one_step(request, folder):
  """(whether a reference is held, what was seen)."""
  options, steps, arity, make_method = RUNS[request.param]
  mesh = sharding.make_mesh(**options)
  method = make_method(models.policy(CONFIG, models.Compute(), mesh))
  batch = _batch(mesh, steps, arity)
  watch = Watch()
  with pytest.MonkeyPatch.context() as patch:
    watch.looking(patch, safetensors_file.Safetensors, 'read')
    watch.looking(patch, device_transfer.LeafBuilder, 'to_devices')
    watch.looking(patch, device_transfer, '_slice_rows')
    placed = parallel.shardings(mesh, CONFIG)
    params = weights.load(folder, shardings=placed)[1]
    watch.end('load')
    state, frozen = _one_step(watch, mesh, method, params, batch, steps)
    del params
    evaluate = step.make_eval_step(method, step.make_score(method))
    evaluate(state.params, frozen, state.aux, batch, state.key)
    watch.end('evaluate')
    weights.save(folder.parent / request.param, CONFIG, state.params)
    watch.end('save')
  return frozen.reference is not None, watch


def _one_step(watch, mesh, method, params, batch, accumulation_steps):
  """(state after one step, frozen), made as a run makes them."""
  reference = None if method.reference == 'none' else params

  def make(params, reference):
    return step.init_state(
      method,
      OPTIMIZER,
      jax.tree.map(jnp.copy, params),
      jax.random.key(0),
      reference=reference,
    )

  shapes = jax.eval_shape(make, params, reference)
  places = sharding.shardings_like(mesh, params, shapes)
  init = jax.jit(make, out_shardings=places)
  state, frozen = init(params, reference), method.freeze(reference)
  watch.end('init')
  train_step = step.make_train_step(
    method,
    OPTIMIZER,
    (places, sharding.replicated(mesh)),
    accumulation_steps=accumulation_steps,
    max_grad_norm=1.0,
  )
  state, metrics = train_step(state, frozen, batch)
  assert not int(metrics['nonfinite'][0])
  watch.end('step')
  return state, frozen


def test_devices_hold_their_parts_alone(run):
  """Parameters; those and the state, thrice as much; the state afterwards."""
  reference, watch = run
  later = 3 + reference
  trees = dict(load=1, init=4, step=4, evaluate=later, save=later)
  found = {stage: 8 * most / SIZE for stage, most in watch.stages.items()}
  for stage, expected in trees.items():
    assert 1 <= found[stage] / expected < SPARE, found


def test_no_program_makes_a_whole_copy(run):
  _, watch = run
  found = {
    name: [round(size / SIZE, 3) for size in sizes]
    for (name, _), sizes in watch.programs.items()
  }
  assert any('train_step' in name for name in found), found
  assert all(max(sizes) < PROGRAM for sizes in found.values()), found


def test_a_whole_copy_would_be_seen(folder):
  """On one device, on all of them, and as an output of a program."""
  mesh = sharding.make_mesh(data=1, fsdp=8)
  watch = Watch()
  params = weights.load(folder)[1]
  watch.end('one')
  params = jax.device_put(params, parallel.shardings(mesh, CONFIG))
  watch.end('parts')
  gather = jax.jit(
    lambda x: jax.tree.map(jnp.copy, x), out_shardings=sharding.replicated(mesh)
  )
  params = gather(params)
  watch.end('all')
  assert watch.stages['one'] >= SIZE
  assert watch.stages['all'] >= SIZE
  assert max(map(max, watch.programs.values())) >= SIZE
