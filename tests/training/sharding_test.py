"""Every mesh gives one device's numbers, with only the needed collectives."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from dpo_jax import models, types
from dpo_jax.data import batches, row_sharding
from dpo_jax.methods import dpo, kto, sft
from dpo_jax.models import parallel, specs
from dpo_jax.training import compiled as compiled_lib
from dpo_jax.training import optimizers, sharding, step
from tests import forests

# Axes that four devices divide; nothing else has the vocabulary's size.
CONFIG = dataclasses.replace(
  forests.CONFIG,
  vocab_size=88,
  num_layers=3,
  num_kv_heads=4,
  tie_embeddings=False,
)
ONE = dict(devices=1)
MESHES = {
  '8x1x1': dict(data=8),
  '1x8x1': dict(data=1, fsdp=8),
  '2x2x2': dict(data=2, fsdp=2, tensor=2),
  '1x2x4': dict(data=1, fsdp=2, tensor=4),
}
DPO_MESHES = [
  pytest.param(name, marks=[pytest.mark.long] * (name != '2x2x2'))
  for name in MESHES
]
STEPS, ROWS = 10, 16
OPTIMIZER = optax.sgd(0.02, momentum=0.9)


def _dpo(loss='dpo', **options):
  return dpo.make(loss=loss, beta=0.5, logprob_chunk=8, **options)


# Options of other models.
OTHERS = {
  'gpt': dict(
    norm='layer',
    positions='learned',
    activation='gelu_tanh',
    gated_mlp=False,
    attention_bias=True,
    attention_out_bias=True,
    mlp_bias=True,
    unembed_bias=True,
    residual='parallel',
    tie_embeddings=True,
  ),
  'gemma': dict(
    norm='rms_offset',
    post_norms=True,
    qk_norm=True,
    local_layers=(True, False, True),
    window=4,
    attention_softcap=5.0,
    logit_softcap=9.0,
    embedding_scale=4.0,
    tie_embeddings=True,
  ),
}
# name -> completions of an example, accumulation steps, the method.
METHODS = {
  'sft': (1, 1, lambda: sft.make(logprob_chunk=8)),
  'dpo': (2, 1, lambda: _dpo(reference='in_step')),
  # Its weights need the whole vocabulary at each token.
  'wpo': (2, 1, lambda: _dpo(weighting='wpo', reference='in_step')),
  # It sorts the pairs of the whole batch.
  'aot': (2, 2, lambda: _dpo('aot', reference='in_step')),
  'drifting': (
    2,
    2,
    lambda: _dpo(
      reference='drifting', reference_options=dict(every=3, mix=0.5)
    ),
  ),
  'kto': (
    2,
    2,
    lambda: kto.make(beta=0.5, logprob_chunk=8, reference='in_step'),
  ),
}


@functools.cache
def _batches(name):
  arity = METHODS[name][0]
  records = forests.random_records(7, num=60, arity=arity)
  if name == 'kto':
    labels = np.arange(len(records.offsets) - len(records) - 1) % 2
    records = dataclasses.replace(records, labels=labels.astype(np.float32))
  packed = batches.train_batches(
    records, STEPS, ROWS, 0, batch_size=48, max_shapes=1
  )
  return [packed[i] for i in range(STEPS)]


def _start(name, mesh, config=CONFIG, optimizer=OPTIMIZER, **compute):
  """(state, frozen, shardings, method) on a mesh, as a run starts."""
  policy = models.policy(config, models.Compute(**compute), mesh)
  method = METHODS[name][2]()(policy)
  places = parallel.shardings(mesh, config)
  params, reference = (
    jax.device_put(forests.params(seed, config), places) for seed in (0, 1)
  )

  def make(params, reference):
    params = jax.tree.map(jnp.copy, params)
    key = jax.random.key(0)
    return step.init_state(method, optimizer, params, key, reference=reference)

  shapes = jax.eval_shape(make, params, reference)
  places = sharding.shardings_like(mesh, params, shapes)
  state = jax.jit(make, out_shardings=places)(params, reference)
  return state, method.freeze(reference), places, method


@functools.cache
def _compiled(name, mesh_name):
  mesh = sharding.make_mesh(**MESHES.get(mesh_name, ONE))
  state, frozen, places, method = _start(name, mesh)
  train_step = step.make_train_step(
    method,
    OPTIMIZER,
    (places, sharding.replicated(mesh)),
    accumulation_steps=METHODS[name][1],
    max_grad_norm=1.0,
  )
  batch = row_sharding.to_devices(mesh, _batches(name)[0])
  return train_step.lower(state, frozen, batch).compile()


@functools.cache
def _run(name, mesh_name):
  """Parameters and metrics after each step."""
  train_step = _compiled(name, mesh_name)
  mesh = sharding.make_mesh(**MESHES.get(mesh_name, ONE))
  state, frozen, _, _ = _start(name, mesh)
  curve = []
  for batch in _batches(name):
    batch = row_sharding.to_devices(mesh, batch)
    state, metrics = train_step(state, frozen, batch)
    curve.append(jax.device_get((state.params, metrics)))
  return curve


@pytest.mark.long
@pytest.mark.parametrize(
  ('name', 'mesh_name'),
  [
    *((name, mesh) for name in ('dpo', 'sft', 'aot') for mesh in MESHES),
    ('drifting', '2x2x2'),
    ('kto', '2x2x2'),
    ('wpo', '2x2x2'),
  ],
)
def test_a_mesh_gives_the_trajectory_of_one_device(name, mesh_name):
  curve, expected = _run(name, mesh_name), _run(name, 'one')
  for i in range(STEPS):
    (params, metrics), (one_params, one_metrics) = curve[i], expected[i]
    forests.assert_trees_close(params, one_params)
    for key, parts in one_metrics.items():
      np.testing.assert_allclose(
        metrics[key], parts, rtol=1e-5, atol=1e-5 * ROWS, err_msg=key
      )
  assert expected[-1][1]['loss'] != expected[0][1]['loss']


def _gradient(config, options, **compute):
  """The gradient of one batch, on the mesh of these options."""
  mesh = sharding.make_mesh(**options)
  state, frozen, _, method = _start('dpo', mesh, config, **compute)
  batch = row_sharding.to_devices(mesh, _batches('dpo')[0])
  gradient = jax.jit(
    functools.partial(step.batch_gradient, method, accumulation_steps=1)
  )
  out = gradient(state.params, frozen, state.aux, batch, state.key)
  return jax.device_get(out[0])


@pytest.mark.parametrize(
  'remat',
  [
    'none',
    pytest.param('dots', marks=pytest.mark.long),
    pytest.param('full', marks=pytest.mark.long),
  ],
)
def test_gradients_are_those_of_one_device(remat):
  """Of one batch, leaf by leaf, whatever the backward pass computes again."""
  config = dataclasses.replace(CONFIG, tie_embeddings=True)
  grads = [
    _gradient(config, options, remat=remat)
    for options in (MESHES['2x2x2'], ONE)
  ]
  for actual, expected in zip(*map(jax.tree.leaves, grads)):
    forests.assert_trees_close(actual, expected)


def _sizes(mesh, *, layers: bool) -> dict[str, int]:
  """f32 bytes gathered over fsdp: a layer's matrices, or blocks of others."""
  sizes = {}
  for path, spec in specs.flat_specs(CONFIG).items():
    shape = spec.shape[1:] if layers else spec.shape
    if path.startswith('layers/') != layers or len(shape) < 2:
      continue
    split = 'tensor' in map(parallel.RULES.get, spec.axes)
    parts = mesh.shape['tensor'] if split else 1
    rows, columns = shape[0] // parts, shape[1]
    # The vocabulary comes in equal blocks, none larger than a layer's matrix.
    most = rows if layers else CONFIG.d_ff // parts
    rows = max(n for n in range(1, most + 1) if rows % n == 0)
    sizes[path] = 4 * rows * columns
  return sizes


@pytest.mark.parametrize(
  'name', ['dpo', pytest.param('sft', marks=pytest.mark.long)]
)
@pytest.mark.parametrize('mesh_name', DPO_MESHES)
def test_a_step_says_only_what_its_mesh_implies(name, mesh_name):
  mesh = sharding.make_mesh(**MESHES[mesh_name])
  train_step = _compiled(name, mesh_name)
  said = compiled_lib.collectives(train_step)
  split = mesh.shape['fsdp'] > 1
  kinds = {'all-gather', 'reduce-scatter'} if split else set()
  assert {c.kind for c in said} == {'all-reduce'} | kinds

  def total(kind, in_loop):
    """Of matrices: norms, which are vectors, are smaller."""
    least = 4 * CONFIG.d_model
    least //= mesh.shape['fsdp'] if kind == 'reduce-scatter' else 1
    alike = (c.bytes for c in said if (c.kind, c.in_loop) == (kind, in_loop))
    return sum(size for size in alike if size > least)

  trees = 2 if name == 'dpo' else 1
  if split:
    # Weights are gathered layer by layer, and the vocabulary's block by block:
    # of each tree forward, of the policy once more backward, but for the
    # embedding; gradients are scattered there.
    layer = sum(_sizes(mesh, layers=True).values())
    rest = _sizes(mesh, layers=False)
    assert total('all-gather', True) == (
      (trees + 1) * (layer + rest['unembed/kernel'])
      + trees * rest['embed/tokens']
    )
    gradients = layer + sum(rest.values())
    assert total('reduce-scatter', True) == gradients // mesh.shape['fsdp']
    assert not total('all-gather', False)
    assert not total('reduce-scatter', False)
  tensor = [
    c for c in said if c.in_loop and c.group_size == mesh.shape['tensor']
  ]
  assert bool(tensor) == (mesh.shape['tensor'] > 1)
  if mesh_name == '1x2x4':  # Where no others are four.
    # Two sums a layer, of each tree forward, of the policy backward; what the
    # blocks of the vocabulary give is summed after their loops.
    size = 4 * _batches(name)[0].tokens_RxL.size // 2 * CONFIG.d_model
    expected = ('all-reduce', size, CONFIG.num_layers)
    found = [(c.kind, c.bytes, c.trips) for c in tensor]
    assert found == [expected] * (2 * trees + 2)
  text = train_step.as_text()
  whole_vocabulary = re.findall(rf'\[(?:\d+,)*{CONFIG.vocab_size}\b', text)
  assert bool(whole_vocabulary) == (mesh.shape['tensor'] == 1)


@pytest.mark.long
def test_no_device_has_a_large_vocabulary():
  """Nor what is gathered of it, nor its gradient, at any time of a step."""
  # The next number of blocks that divides it is larger than it must be.
  config = dataclasses.replace(CONFIG, vocab_size=2**17 - 2**7, d_ff=2**8)
  mesh = sharding.make_mesh(**MESHES['1x8x1'])
  state, frozen, places, method = _start('dpo', mesh, config)
  places = (places, sharding.replicated(mesh))
  train_step = step.make_train_step(method, OPTIMIZER, places)
  batch = row_sharding.to_devices(mesh, _batches('dpo')[0])
  memory = train_step.lower(state, frozen, batch).compile().memory_analysis()
  matrix = 4 * config.vocab_size * config.d_model
  # Of what is gathered and its gradient, a quarter each; the rest are parts.
  assert memory.temp_size_in_bytes < 1.5 * matrix


@pytest.mark.long
@pytest.mark.parametrize('mesh_name', MESHES)
def test_coupling_rows_moves_their_log_ratios_alone(mesh_name):
  """Sorting the pairs of all devices takes one number a pair to each."""
  mesh = sharding.make_mesh(**MESHES[mesh_name])
  said = compiled_lib.collectives(_compiled('aot', mesh_name))
  split = mesh.shape['fsdp'] > 1
  kinds = {'all-gather', 'all-reduce'} | (
    {'reduce-scatter'} if split else set()
  )
  assert {c.kind for c in said} == kinds
  weights = {4 * CONFIG.d_model}
  for layers in (True, False):
    weights |= set(_sizes(mesh, layers=layers).values())
  gathers = [c.bytes for c in said if c.kind == 'all-gather']
  numbers = sum(size for size in gathers if size not in weights) // 4
  # Policy and reference, two completions, and what says which count.
  pairs = math.prod(_batches('aot')[0].example_weight_RxE.shape)
  assert numbers <= 8 * pairs
  # Weights are gathered in loops; what is sent outside is at least a number a
  # pair, beside which are norms.
  outside = [c.bytes for c in said if c.kind == 'all-gather' and not c.in_loop]
  assert sum(outside) // 4 >= pairs


def test_moments_lie_as_their_parameters_do():
  mesh = sharding.make_mesh(**MESHES['2x2x2'])
  places = parallel.shardings(mesh, CONFIG)
  params = jax.device_put(forests.params(0, CONFIG), places)
  for make in optimizers.OPTIMIZERS.values():
    optimizer = make(1e-3)
    state = jax.eval_shape(optimizer.init, params)
    found = sharding.shardings_like(mesh, params, state)
    of_params = [
      leaf.sharding.shard_shape(leaf.shape) for leaf in jax.tree.leaves(params)
    ]
    for leaf, place in zip(*map(jax.tree.leaves, (state, found))):
      if leaf.size > CONFIG.num_layers * CONFIG.d_model:
        assert place.shard_shape(leaf.shape) in of_params


def test_a_factored_moment_lies_as_the_axes_it_has():
  mesh = sharding.make_mesh(**MESHES['2x2x2'])
  spec = PartitionSpec(None, 'fsdp', 'tensor')
  params = {
    'w': jax.ShapeDtypeStruct(
      (3, 8, 4), np.float32, sharding=NamedSharding(mesh, spec)
    )
  }
  shapes = dict(
    rows=(3, 8), columns=(3, 4), layers=(8, 4), other=(8, 8), count=()
  )
  tree = {
    k: {'w': jax.ShapeDtypeStruct(s, np.float32)} for k, s in shapes.items()
  }
  found = sharding.shardings_like(mesh, params, tree)
  assert {k: v['w'].spec for k, v in found.items()} == {
    'rows': PartitionSpec(None, 'fsdp'),
    'columns': PartitionSpec(None, 'tensor'),
    'layers': PartitionSpec('fsdp', 'tensor'),
    'other': PartitionSpec(),
    'count': PartitionSpec(),
  }


@pytest.mark.long
def test_an_optimizer_state_may_stay_with_the_host():
  mesh = sharding.make_mesh(**MESHES['1x8x1'])
  optimizer = optimizers.adamw(1e-2)
  _, frozen, places, method = _start('dpo', mesh, optimizer=optimizer)
  curves = []
  for at in (places, sharding.offload_optimizer(places)):
    train_step = step.make_train_step(
      method, optimizer, (at, sharding.replicated(mesh))
    )
    state, curve = (
      jax.device_put(_start('dpo', mesh, optimizer=optimizer)[0], at),
      [],
    )
    for batch in _batches('dpo')[:3]:
      state, metrics = train_step(
        state, frozen, row_sharding.to_devices(mesh, batch)
      )
      curve.append(jax.device_get(metrics))
    curves.append(curve)
  kinds = {
    x.sharding.memory_kind for x in jax.tree.leaves(state.opt_state) if x.ndim
  }
  assert kinds == {'pinned_host'}
  assert {x.sharding.memory_kind for x in jax.tree.leaves(state.params)} == {
    'device'
  }
  jax.tree.map(np.testing.assert_array_equal, *curves)


@pytest.mark.parametrize(
  ('sizes', 'message'),
  [
    (
      dict(data=3),
      r'data=3 x fsdp=1 x tensor=1, whose product is 3, but there are 8',
    ),
    (dict(data=-1, fsdp=3), r'whose product is 3, but there are 8 devices'),
    (dict(data=0), 'expected sizes of at least 1'),
    (dict(data=-1, fsdp=-1), 'for at most one of them'),
    (dict(devices=9), 'mesh.devices is 9, but there are 8'),
    (dict(data=None), 'mesh.data is None; expected an integer'),
    (dict(fsdp=2.0), 'mesh.fsdp is 2.0; expected an integer'),
  ],
)
def test_a_mesh_that_does_not_exist_is_an_error(sizes, message):
  with pytest.raises(ValueError, match=message):
    sharding.make_mesh(**sizes)


class Chip:
  """A TPU as far as its place goes: v5p, whose axes JAX does not split."""

  platform, device_kind, core_on_chip = 'tpu', 'TPU v5p', 0

  def __init__(self, index, coords, part):
    self.id, self.coords, self.slice_index = index, coords, part
    self.process_index = index // 4


def _chips(x, y, z, slices=1):
  places = [
    ((i, j, k), part)
    for part in range(slices)
    for k in range(z)
    for j in range(y)
    for i in range(x)
  ]
  return [Chip(i, *place) for i, place in enumerate(places)]


@pytest.mark.parametrize('sizes', [(1, 64, 1), (1, 8, 8), (2, 16, 2)], ids=str)
def test_any_mesh_can_be_laid_on_a_torus(sizes):
  chips = _chips(4, 4, 4)
  grid = sharding._grid(sizes, chips)
  assert grid.shape == sizes
  assert set(grid.flat) == set(chips)


@pytest.mark.parametrize('sizes', [(2, 16, 1), (4, 8, 1), (1, 32, 1)], ids=str)
def test_slices_lie_along_the_first_axes(sizes):
  grid = sharding._grid(sizes, _chips(2, 2, 4, slices=2))
  part = np.vectorize(lambda chip: chip.slice_index)(grid).reshape(2, 16)
  assert (part == [[0], [1]]).all()


def test_nodes_of_gpus_lie_in_their_order():
  """JAX calls each node a slice, and lays no mesh over several."""
  chips = _chips(16, 1, 1, slices=2)
  for chip in chips:
    chip.platform = 'gpu'
  grid = sharding._grid((2, 8, 2), chips)
  assert [chip.id for chip in grid.flat] == list(range(32))


def test_minus_one_is_what_is_left():
  mesh = sharding.make_mesh(data=2, fsdp=-1, tensor=2)
  assert dict(mesh.shape) == dict(data=2, fsdp=2, tensor=2)
  assert sharding.make_mesh(fsdp=2).shape['data'] == 4


def test_a_model_that_the_mesh_does_not_divide_is_an_error():
  mesh = sharding.make_mesh(data=1, fsdp=2, tensor=4)
  config = dataclasses.replace(CONFIG, num_kv_heads=2, vocab_size=90)
  message = (
    'vocab_size 90 by mesh.tensor=4, num_kv_heads 2 by mesh.tensor=4.*fsdp may '
    'be a divisor of 16; tensor may be a divisor of 2'
  )
  with pytest.raises(ValueError, match=message):
    parallel.shardings(mesh, config)


def test_a_batch_that_does_not_divide_is_an_error():
  mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
  assert sharding.rows_per_batch(mesh, 32, 2) == 8
  message = (
    r'36 examples \(train_batches.batch_size\) does not divide into 4 groups.*'
    'a multiple of 8, or a divisor of 9 as step.accumulation_steps'
  )
  with pytest.raises(ValueError, match=message):
    sharding.rows_per_batch(mesh, 36, 2)


def test_tensor_devices_share_rows():
  mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
  x = row_sharding.to_devices(mesh, np.arange(8.0)[:, None])
  held = {
    d: i[0].start for d, i in x.sharding.devices_indices_map(x.shape).items()
  }
  for group, start in zip(mesh.devices.reshape(4, 2), (0, 2, 4, 6)):
    assert [held[d] or 0 for d in group] == [start] * 2
  assert row_sharding.local_rows(mesh, 8) == list(range(8))


@pytest.mark.long
@pytest.mark.parametrize('name', OTHERS)
@pytest.mark.parametrize(
  ('mesh', 'vocab_size'),
  [
    # Of half of it, 47, no number of blocks is a divisor.
    (MESHES['2x2x2'], 94),
    (dict(data=1, fsdp=8), 97),
    # One block a device, and nothing to gather.
    (dict(data=2, tensor=4), 88),
    # One for all, and smaller than it may be.
    (dict(data=4, fsdp=2), forests.VOCAB),
  ],
  ids=str,
)
def test_gradients_of_any_model_are_those_of_one_device(name, mesh, vocab_size):
  d_ff = 64 if vocab_size == forests.VOCAB else CONFIG.d_ff
  config = dataclasses.replace(
    CONFIG, vocab_size=vocab_size, d_ff=d_ff, **OTHERS[name]
  )
  forests.assert_trees_close(_gradient(config, mesh), _gradient(config, ONE))


def _flat(tree):
  return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


@pytest.mark.long
@pytest.mark.parametrize('mesh_name', MESHES)
def test_bfloat16_costs_a_mesh_no_more_than_one_device(mesh_name):
  """The gradient's distance from that of float32, with all its sums."""
  exact = _flat(_gradient(CONFIG, ONE))
  one, many = (
    np.linalg.norm(_flat(gradient) - exact) / np.linalg.norm(exact)
    for gradient in (
      _gradient(CONFIG, options, dtype='bfloat16')
      for options in (ONE, MESHES[mesh_name])
    )
  )
  assert 1e-3 < one < 0.1
  assert many < 1.2 * one


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('mesh_name', MESHES)
def test_no_backward_pass_keeps_what_was_gathered(mesh_name, dtype):
  """What it keeps is as much as on one device: activations, no weights."""
  sizes = []
  for options in (ONE, MESHES[mesh_name]):
    mesh = sharding.make_mesh(**options)
    policy = models.policy(CONFIG, models.Compute(dtype=dtype), mesh)

    score = METHODS['sft'][2]()(policy).score

    def kept(params, score=score):
      def scores(params):
        return score(params, types.Frozen(), batch, None)  # noqa: B023

      return jax.vjp(scores, params)[1]

    batch = _batches('sft')[0]
    kept = jax.eval_shape(kept, forests.params(0, CONFIG))
    sizes.append(sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(kept)))
  one, many = sizes
  assert many <= one + 100
