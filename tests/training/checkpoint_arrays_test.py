"""States are restored bit by bit, on any devices."""

import contextlib
import json
import math
import threading

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from dpo_jax import types
from dpo_jax.training import checkpoints
from tests import states

AUX = {
  'none': lambda: None,
  'scalar': lambda: jnp.bfloat16(0.3),
  'tree': lambda: (jnp.float32(math.nan), {'n': jnp.arange(5), 'none': None}),
}


@pytest.mark.parametrize('impl', ['threefry2x32', 'rbg'])
@pytest.mark.parametrize('aux', AUX)
def test_a_state_comes_back_bit_by_bit(aux, impl, tmp_path):
  state = states.make(3, aux=AUX[aux](), impl=impl)
  folder = tmp_path / 'new' / 'folder'
  with checkpoints.open(folder, keep=1) as saves:
    assert saves.restore(state) is None
    saves.save(7, state, {})
    step, again, _ = saves.restore(_abstract(state))
    assert step == 7 and states.bits(again) == states.bits(state)
    draws = [jax.random.bits(s.key, (4,)) for s in (again, state)]
    np.testing.assert_array_equal(*draws)
  with checkpoints.open(folder, keep=1) as saves:
    _, again, _ = saves.restore(state)
    assert states.bits(again) == states.bits(state)
    _, on_host, _ = saves.restore(jax.eval_shape(lambda: state))
    assert states.bits(on_host) == states.bits(state)
    assert isinstance(on_host.params['f32'], np.ndarray)


def _abstract(state):
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
  )


def _split(axis):
  mesh = jax.make_mesh((8,), ('data',))

  def of(shape):
    fits = len(shape) > axis and shape[axis] and shape[axis] % 8 == 0
    spec = PartitionSpec(*[None] * axis, 'data') if fits else PartitionSpec()
    return NamedSharding(mesh, spec)

  return of


def _split_both(shape):
  mesh = jax.make_mesh((2, 4), ('x', 'y'))
  fits = len(shape) == 2 and all(shape)
  spec = PartitionSpec('y', 'x') if fits else PartitionSpec()
  return NamedSharding(mesh, spec)


PLACES = {
  'one': lambda shape: SingleDeviceSharding(jax.devices()[3]),
  'replicated': _split(axis=9),
  'rows': _split(axis=0),
  'columns': _split(axis=1),
  'both': _split_both,
}


def _place(state, name):
  shardings = jax.tree.map(lambda x: PLACES[name](x.shape), state)
  return jax.device_put(state, shardings)


@pytest.mark.parametrize(
  'before, after',
  [
    ('one', 'rows'),
    ('replicated', 'columns'),
    ('rows', 'both'),
    ('columns', 'replicated'),
    ('both', 'one'),
  ],
)
def test_a_state_comes_back_onto_other_devices(before, after, tmp_path):
  state = states.make(1, aux=AUX['tree']())
  wanted = _place(states.make(2, aux=AUX['tree']()), after)
  with checkpoints.open(tmp_path, keep=1) as saves:
    saves.save(1, _place(state, before), {})
    _, again, _ = saves.restore(wanted)
  assert states.bits(again) == states.bits(state)
  for x, y in zip(jax.tree.leaves(again), jax.tree.leaves(wanted), strict=True):
    assert x.sharding.is_equivalent_to(y.sharding, x.ndim)


@pytest.mark.parametrize('place', ['one', 'replicated', 'rows'])
def test_the_state_may_be_donated_at_once(place, tmp_path):
  # 64 MB: writing takes longer than the steps that overwrite it.
  params = {'a': jnp.arange(2.0**24).reshape(8, -1), 'b': jnp.ones((1021, 3))}
  state = states.make(1).replace(params=params, opt_state=())
  state = _place(state, place)
  like, before = _abstract(state), states.bits(state)

  def step(state):
    flipped = jax.tree.map(lambda x: -x - 1, state.params)
    return state.replace(params=flipped, step=state.step - 1)

  step = jax.jit(step, donate_argnums=0).lower(state).compile()
  with checkpoints.open(tmp_path, keep=1) as saves:
    saves.save(1, state, {})
    for _ in range(3):
      state = step(state)
    jax.block_until_ready(state)
    _, again, _ = saves.restore(like)
  assert states.bits(again) == before


def test_progress_is_as_it_was_when_saved(tmp_path):
  numbers = [math.nan, math.inf, 5e-324, 0.1 + 0.2, -0.0, 1.7e308, 2**63, None]
  progress = {'counters': {'epoch': 3}, 'sums': numbers, 'text': 'ünï'}
  before = json.dumps(progress)
  with checkpoints.open(tmp_path, keep=1) as saves:
    saves.save(1, states.make(), progress, {'loss': np.float32(1.5)})
    progress['sums'].append(1)
    assert json.dumps(saves.restore(states.make())[2]) == before
    with pytest.raises(TypeError, match='not JSON'):
      saves.save(2, states.make(), {'array': jnp.ones(2)})
    assert saves.steps() == [1]


def test_the_state_of_another_model_is_an_error(tmp_path):
  state = states.make(aux={'mean': jnp.float32(0)})
  wide = state.params | {'f32': jnp.zeros((8, 17)), 'more': jnp.zeros(2)}
  narrow = state.params | {'bf16': state.params['f32']}
  with checkpoints.open(tmp_path, keep=1) as saves:
    saves.save(4, state, {})
    for other, expected in (
      (
        state.replace(params=wide),
        [
          r".params['f32']: float32[8,16] there, float32[8,17] here",
          r".params['more']: nothing there, float32[2] here",
        ],
      ),
      (
        state.replace(params=narrow),
        [r".params['bf16']: bfloat16[8,16] there, float32[8,16] here"],
      ),
      (state.replace(aux=None), [".aux['mean']: float32[] there, nothing"]),
      (
        state.replace(key=jax.random.key(0, impl='rbg')),
        ['.key: key<fry>[] there, key<rbg>[] here'],
      ),
    ):
      with pytest.raises(ValueError, match='another model') as error:
        saves.restore(other)
      assert str(tmp_path / '4') in str(error.value)
      for line in expected:
        assert line in str(error.value)
      assert str(error.value).count('\n') == len(expected)
    assert saves.restore(state)[0] == 4


class _LargestShards(threading.Thread):
  """Bytes of the largest shard of each shape that arrays had on a device."""

  def __enter__(self):
    self.seen, self.done = {}, False
    self.start()
    return self.seen

  def __exit__(self, *_):
    self.done = True
    self.join()

  def run(self):
    while not self.done:
      for x in jax.live_arrays():
        with contextlib.suppress(RuntimeError):  # Deleted by now.
          largest = max(shard.data.nbytes for shard in x.addressable_shards)
          self.seen[x.shape] = max(largest, self.seen.get(x.shape, 0))


@pytest.mark.parametrize('after', ['rows', 'columns', 'both'])
def test_no_device_holds_more_than_its_shard(after, tmp_path):
  # 64 MB, so that it takes some time.
  shape, size = (4096, 4096), 1 << 26
  place = PLACES['columns'](shape)
  params = {'w': jax.jit(lambda: jnp.ones(shape), out_shardings=place)()}
  state = types.TrainState(jnp.int32(0), params, (), None, jax.random.key(0))
  wanted = jax.ShapeDtypeStruct(
    shape, jnp.float32, sharding=PLACES[after](shape)
  )
  with checkpoints.open(tmp_path, keep=1) as saves, _LargestShards() as seen:
    saves.save(1, state, {})
    saves.wait()
    _, again, _ = saves.restore(state.replace(params={'w': wanted}))
  assert again.params['w'].sharding == wanted.sharding
  whole = {s: x for s, x in seen.items() if x > size // 8}
  assert shape in seen and not whole


def test_large_shards_are_written_in_parts(tmp_path):
  """So that a piece of a shard can be read without the rest."""
  params = {'w': jnp.ones((4096, 4096)), 'small': jnp.ones(7)}
  state = types.TrainState(jnp.int32(0), params, (), None, jax.random.key(0))
  with checkpoints.open(tmp_path, keep=1) as saves:
    saves.save(1, state, {})
  reader = ocp.PyTreeCheckpointHandler()
  found = reader.metadata(epath.Path(tmp_path / '1')).tree
  chunks = {name: x.storage.chunk_shape for name, x in found.items()}
  assert chunks[".params['w']"] == (2048, 2048)
  assert chunks[".params['small']"] == (7,)
