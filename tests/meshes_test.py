"""A run that moves to other devices goes on as if it had stayed."""

import os
import signal

import jax
import numpy as np
import pytest

from dpo_jax import run_actions, train, weights
from dpo_jax.models import parallel
from dpo_jax.training import checkpoints, metrics, sharding
from experiments.crashes import runs
from tests import saved_params, tiny

ONE = dict(data=1, fsdp=1, tensor=1, devices=1)
EIGHT = dict(data=2, fsdp=2, tensor=2, devices=8)
FOUR = dict(data=1, fsdp=4, tensor=1, devices=4)
STEPS = 12


@pytest.fixture(scope='module')
def moved(tmp_path_factory):
  """(workdir of a run on one device, that of one on 8, then 4, then 8)."""
  root = tmp_path_factory.mktemp('meshes')
  tiny.write(root / 'data')
  config = tiny.page(root / 'data', method='sft')
  config |= dict(steps=STEPS, log_every=1, eval_every=STEPS)
  config['checkpoints'] = dict(every=4, keep=1)
  for part in ('train', 'eval'):
    config[f'{part}_batches'] = dict(batch_size=8, max_shapes=1)
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('DPO_JAX_CACHE', str(root / 'cache'))
    train.train(root / 'stayed', config | dict(mesh=ONE))
    # Four devices also leave the moments with the host.
    four = FOUR | dict(offload_optimizer=True)
    for mesh, stop in ((EIGHT, 4), (four, 8)):
      _stop_at(stop, patch)
      with pytest.raises(SystemExit) as stopped:
        train.train(root / 'moved', config | dict(mesh=mesh))
      assert stopped.value.code == run_actions.TERMINATED
    train.train(root / 'moved', config | dict(mesh=EIGHT))
  return root / 'stayed', root / 'moved'


def _stop_at(step, patch):
  """A SIGTERM once this step's checkpoint is begun."""
  save = checkpoints.Checkpoints.save

  def save_and_stop(self, at, *args):
    save(self, at, *args)
    if at == step:
      os.kill(os.getpid(), signal.SIGTERM)

  patch.setattr(checkpoints.Checkpoints, 'save', save_and_stop)


@pytest.mark.long
def test_the_curve_is_that_of_one_device(moved):
  there, here = (metrics.read_jsonl(x / 'metrics.jsonl') for x in moved)
  steps = [0, *range(1, STEPS + 1), STEPS]
  assert [row['step'] for row in there] == steps
  assert [row['step'] for row in here] == steps
  for a, b in zip(there, here):
    names = a.keys() - set(runs.TIMING)
    assert names == b.keys() - set(runs.TIMING)
    for name in names:
      np.testing.assert_allclose(b[name], a[name], rtol=1e-5, err_msg=name)


@pytest.mark.long
@pytest.mark.parametrize('mesh', [ONE, EIGHT, FOUR], ids=str)
def test_parameters_are_the_same_on_any_mesh(mesh, moved):
  workdir = moved[1]
  config = weights.read_config(workdir / 'params')
  places = parallel.shardings(sharding.make_mesh(**mesh), config)
  shapes = jax.eval_shape(lambda: weights.load(workdir / 'params')[1])
  step, params = saved_params.read(
    workdir / 'checkpoints', 'latest', sharding.with_shardings(shapes, places)
  )
  assert step == STEPS
  _, _, saved = runs.last_checkpoint(workdir)
  for path, x in jax.tree_util.tree_leaves_with_path(params):
    name = f'.params{jax.tree_util.keystr(path)}'
    assert np.asarray(x).tobytes() == saved[name]
  found = jax.tree.map(lambda x: x.sharding, params)
  assert jax.tree.all(jax.tree.map(lambda a, b: a == b, found, places))
