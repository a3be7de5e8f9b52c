"""Sampling with parameters on a mesh, in one process and in two."""

import dataclasses
import functools
import json
import math
import os
import pathlib
import re
import socket
import subprocess
import sys
from typing import NamedTuple
from unittest import mock

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from dpo_jax import models, sampling, types
from dpo_jax.models import parallel
from dpo_jax.sampling import engine
from dpo_jax.training import sharding
from tests import forests
from tests.sampling import two_processes

ROOT = pathlib.Path(__file__).parents[2]
# Of a width at which weights are larger than all else that could move.
CONFIG = dataclasses.replace(
  forests.CONFIG, vocab_size=64, d_model=128, head_dim=32, d_ff=256
)
PROMPTS = [[5, 9, 2], [7], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [3, 3], [6]]
MESHES = {
  'data': dict(data=8),
  'fsdp': dict(data=1, fsdp=8),
  'all': dict(data=2, fsdp=2, tensor=2),
}
_prefill, _advance = engine.make_prefill, engine.make_advance


def _sample(params):
  return sampling.sample(
    params,
    CONFIG,
    PROMPTS,
    key=jax.random.key(11),
    max_new_tokens=6,
    num_samples=2,
    eos_id=20,
  )


@functools.cache
def _on_one_device():
  params = models.init(jax.random.key(2), CONFIG)
  params = jax.tree.map(lambda x: x * 4 if x.ndim > 1 else x, params)
  return params, _sample(params)


class Seen(NamedTuple):
  """What sampling on a mesh compiled and held.

  prefill, advance: HLO. stacked: parameters as they were given; weights, cache:
  what a token reads of them and of the prompts.
  """

  samples: sampling.Samples
  prefill: str
  advance: str
  stacked: types.Params
  weights: types.Params
  cache: list[jax.ShapeDtypeStruct]


@functools.cache
def _on_a_mesh(name) -> Seen:
  mesh = sharding.make_mesh(**MESHES[name])
  whole, _ = _on_one_device()
  params = jax.device_put(whole, parallel.shardings(mesh, CONFIG))
  texts, held = {}, []

  def recorded(name, make):
    def make_recorded(*options):
      fn = make(*options)

      def run(*args):
        compiled = fn.lower(*args).compile()
        texts[name] = compiled.as_text()
        if name == 'advance':
          state, weights = args[:2]
          cache = jax.tree.leaves(
            state.cache.replace(prompt_length_B=None, joined_B=None)
          )
          shapes = [
            jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
            for x in cache
          ]
          held.extend([weights, shapes])
        return compiled(*args)

      return run

    return make_recorded

  with (
    mock.patch.object(engine, 'make_prefill', recorded('prefill', _prefill)),
    mock.patch.object(engine, 'make_advance', recorded('advance', _advance)),
  ):
    samples = _sample(params)
  return Seen(samples, texts['prefill'], texts['advance'], params, *held)


def _moved(text):
  """(kind, elements of the result) of all collectives."""
  kinds = 'all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter'
  found = re.findall(rf'= (.*?) ({kinds})(?:-start)?\(', text)
  return [
    (kind, math.prod(int(n) for n in shape.split(',') if n))
    for shapes, kind in found
    for shape in re.findall(r'\w+\[([\d,]*)\]', shapes)
  ]


def _matrices(layer):
  return [x for x in jax.tree.leaves(layer) if x.ndim > 1]


def _part(x):
  return math.prod(x.sharding.shard_shape(x.shape))


each_mesh = pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=() if name == 'all' else pytest.mark.long)
    for name in MESHES
  ],
)


@each_mesh
def test_a_mesh_draws_what_one_device_draws(name):
  _, one = _on_one_device()
  found = _on_a_mesh(name).samples
  np.testing.assert_array_equal(found.tokens_BxSxT, one.tokens_BxSxT)
  np.testing.assert_array_equal(found.lengths_BxS, one.lengths_BxS)
  assert len(np.unique(one.lengths_BxS)) > 1
  for part in ('logps_BxSxT', 'behaviour_logps_BxSxT'):
    np.testing.assert_allclose(
      getattr(found, part), getattr(one, part), rtol=1e-4, atol=1e-5
    )


@each_mesh
def test_weights_stay_where_they_are(name):
  """A step exchanges activations only; prefill one layer at a time."""
  seen = _on_a_mesh(name)
  size = MESHES[name].get('fsdp', 1) * MESHES[name].get('tensor', 1)
  weights = [seen.weights['embed'], *seen.weights['layers']]
  assert all(_part(x) * size == x.size for x in _matrices(weights))
  moved = _moved(seen.advance)
  # Even if gathered over one axis alone.
  tensor = MESHES[name].get('tensor', 1)
  least = min(x.size for x in _matrices(weights)) // tensor
  assert moved and max(elements for _, elements in moved) < least
  most = max(x.size for x in _matrices(weights))
  gathered = [n for kind, n in _moved(seen.prefill) if kind == 'all-gather']
  largest = max(gathered, default=0)
  assert largest <= most
  assert (largest >= least) == (MESHES[name].get('fsdp', 1) > 1)


@each_mesh
def test_devices_share_the_cache(name):
  seen = _on_a_mesh(name)
  assert len(seen.cache) == 4 * CONFIG.num_layers
  assert all(8 * _part(x) == x.size for x in seen.cache)
  # And in the loop it is neither copied nor whole.
  for x in seen.cache:
    part = ','.join(map(str, x.sharding.shard_shape(x.shape)))
    whole = ','.join(map(str, x.shape))
    assert f'f32[{part}]' in seen.advance
    assert f'f32[{whole}]' not in seen.advance


@each_mesh
def test_on_a_cpu_layers_are_views_of_the_parts(name):
  seen = _on_a_mesh(name)
  stacked = seen.stacked['layers']['mlp']['up']['kernel']
  for i, layer in enumerate(seen.weights['layers']):
    kernel = layer['mlp']['up']['kernel']
    np.testing.assert_array_equal(kernel, stacked[i])
    for part, of in zip(kernel.addressable_shards, stacked.addressable_shards):
      assert part.device == of.device
      begin = of.data.unsafe_buffer_pointer()
      # Only what is aligned can be a view.
      offset = i * part.data.nbytes
      assert part.data.unsafe_buffer_pointer() == begin + offset


def test_another_mesh_is_refused():
  mesh = jax.sharding.Mesh(np.array(jax.devices()), 'x')
  split = NamedSharding(mesh, PartitionSpec('x'))
  params = {'a': jax.device_put(np.zeros(8), split)}
  with pytest.raises(ValueError, match=r"'x'.*axes data, fsdp, tensor"):
    _sample(params)


@pytest.mark.long
def test_two_processes_draw_what_one_draws():
  """With two devices each, over loopback; all samples in both."""
  with socket.create_server(('localhost', 0)) as server:
    port = server.getsockname()[1]
  env = dict(os.environ, PYTHONPATH=str(ROOT), JAX_NUM_CPU_DEVICES='2')
  command = [sys.executable, '-m', two_processes.__name__, f'localhost:{port}']
  started = [
    subprocess.Popen(
      [*command, str(index)], env=env, cwd=ROOT, stdout=-1, stderr=-1, text=True
    )
    for index in range(2)
  ]
  try:
    ended = [process.communicate(timeout=600) for process in started]
  finally:
    for process in started:
      process.kill()
  for process, (_, errors) in zip(started, ended):
    assert not process.returncode, errors[-2000:]
  expected = two_processes.draw()
  for out, _ in ended:
    found = json.loads(out.splitlines()[-1])
    assert found['tokens'] == expected['tokens']
    assert found['streamed'] == expected['streamed']
    assert (
      found['streamed'] == expected['tokens'][0][0][: len(found['streamed'])]
    )
    np.testing.assert_allclose(found['logps'], expected['logps'], atol=1e-5)
