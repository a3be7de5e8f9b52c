"""A plan is of the step that training runs, and says what it can't plan."""

import math
import pathlib

import jax
import numpy as np
import pytest

from dpo_jax import methods, models, plan, types
from dpo_jax.evals import flops
from dpo_jax.models import presets
from dpo_jax.training import compiled, topologies
from tests import forests, tiny


def _page(**sections):
  """The tiny page, of files that nobody reads."""
  page = tiny.page(
    pathlib.Path('nowhere'), method=sections.pop('method', 'dpo')
  )
  return {**page, 'mesh': dict(data=-1), **sections}


def _plan(chips, **sections):
  devices = topologies.devices(f'cpu:{chips}')
  return plan.make(_page(**sections), forests.CONFIG, devices)


def test_a_plan_of_parameters_split_over_four():
  found = _plan(4, mesh=dict(fsdp=-1, data=1))
  params = models.init(jax.random.key(0), forests.CONFIG)
  count = sum(x.size for x in jax.tree.leaves(params))
  assert found.parameters == count
  assert found.mesh == dict(data=1, fsdp=4, tensor=1)
  # AdamW: the parameters and two moments, but norms, in float32.
  assert 3 * 4 * count / 4 < found.state < 3 * 4 * count / 4 * 1.3
  # And the batch.
  assert found.state < found.memory.arguments < found.state + 20_000
  kinds = {c.kind for c in found.collectives}
  assert kinds == {'all-gather', 'reduce-scatter', 'all-reduce'}
  gathers = [c for c in found.collectives if c.kind == 'all-gather']
  # Of the layers, and of the blocks of the vocabulary.
  trips = {c.trips for c in gathers if c.in_loop}
  config = forests.CONFIG
  blocks = math.ceil(config.vocab_size / config.d_ff)
  assert trips == {config.num_layers, blocks} and blocks > config.num_layers
  assert found.changed == () and found.failure is None


def test_examples_are_of_full_length():
  step = _step('dpo')
  # Eight pairs: a prompt of 24 tokens, and two answers of as many.
  assert step.batch.tokens_RxL.shape == (1, 8 * 3 * 24)
  tokens, scored = 8 * 3 * 24, 8 * 2 * 24
  seen = 8 * (sum(range(1, 49)) * 2 - sum(range(1, 25)))
  of_model = flops.model_flops(
    forests.CONFIG, tokens=tokens, scored=scored, attention_pairs=seen
  )
  assert step.model_flops == 3 * of_model
  traced = step.call.trace(step.state, step.frozen, step.batch)
  # Attention and unembedding are padded to blocks.
  assert of_model * 3 < compiled.flops(traced) < of_model * 5
  assert _step('sft').batch.tokens_RxL.shape == (1, 8 * 48)


def _step(method):
  s, _ = plan.settings_for(_page(method=method), topologies.devices('cpu:1'))
  return plan.make_step(s, forests.CONFIG)


def test_a_step_of_the_plan_runs_on_real_parameters():
  page = _page(method='dpo')
  page['method'] = dict(name='dpo', beta=0.1, reference='in_step')
  chips = topologies.devices('cpu:2')
  s, _ = plan.settings_for(page, chips)
  step = plan.make_step(s, forests.CONFIG)

  def place(x, like):
    return jax.device_put(x, like.sharding)

  params = jax.tree.map(place, forests.params(0), step.state.params)
  state = jax.tree.map(
    lambda like: jax.device_put(
      jax.random.key(0)
      if jax.dtypes.issubdtype(like.dtype, jax.dtypes.prng_key)
      else np.zeros(like.shape, like.dtype),
      like.sharding,
    ),
    step.state,
  ).replace(params=params)
  method = methods.build(s.method)(models.policy(forests.CONFIG))
  batch = plan.full_batch(s, method)
  batch = jax.tree.map(place, batch, step.batch)
  frozen = jax.tree.map(place, forests.params(0), step.frozen.reference)
  program = step.call.lower(step.state, step.frozen, step.batch).compile()
  state, metrics = program(state, types.Frozen(reference=frozen), batch)
  np.testing.assert_allclose(
    metrics['loss'][0] / metrics['loss'][1], np.log(2), rtol=1e-5
  )
  assert int(state.step) == 1


def test_accumulation_and_devices_that_change_are_said():
  page = _page(step=dict(accumulation_steps=8), mesh=dict(devices=1))
  s, changed = plan.settings_for(page, topologies.devices('cpu:2'))
  assert s.train_rows == 2 * 4
  assert changed == [
    'mesh.devices: all 2 of the topology',
    'step.accumulation_steps: 4 instead of 8, as 8 examples are 4 a group of '
    'chips',
  ]


def test_a_batch_that_does_not_divide_is_an_error():
  with pytest.raises(ValueError, match=r'8 examples .* does not divide into 3'):
    plan.settings_for(_page(), topologies.devices('cpu:3'))


def test_a_model_that_does_not_divide_is_an_error():
  page = _page(mesh=dict(data=1, tensor=-1))
  with pytest.raises(ValueError, match=r'num_heads 4 by mesh.tensor=8'):
    plan.make(page, forests.CONFIG, topologies.devices('cpu:8'))


def test_what_does_not_fit_is_said(monkeypatch):
  monkeypatch.setitem(topologies.HBM, 'cpu', 1000)
  found = _plan(1)
  assert found.memory is None
  shown = plan.show(found, 'cpu:1')
  assert 'does not fit into 0.00 GiB a chip: what stays' in shown


def test_shapes_of_models(tmp_path):
  assert plan.find_model('hf://EleutherAI/gpt-j-6b', None) == presets.get(
    'gpt-j-6b'
  )
  assert plan.find_model(None, 'gpt2') == presets.get('gpt2')
  tiny.write(tmp_path)
  config = plan.find_model(str(tmp_path / 'model'), None)
  assert (config.num_layers, config.d_model) == (2, 32)
  with pytest.raises(ValueError, match=r"Did you mean 'gpt-j-6b'"):
    plan.find_model(None, 'gptj-6b')
  with pytest.raises(ValueError, match=r'runs/none/params.*--preset'):
    plan.find_model('runs/none/params', None)
  with pytest.raises(ValueError, match='Which model'):
    plan.find_model(None, None)


def test_topologies_that_are_not_there(monkeypatch):
  with pytest.raises(ValueError, match='expected cpu:1 to cpu:8'):
    topologies.devices('cpu:9')
  monkeypatch.setattr(topologies, 'has_compiler', lambda: False)
  with pytest.raises(
    ValueError, match=r"'v5e:2x2' needs .* pip install libtpu"
  ):
    topologies.devices('v5e:2x2')
  assert topologies.slices('v5p')[0] == 'v5p:2x2x1'
  assert topologies.slices('v5e:4x4') == ['v5e:4x4']


def test_lengths_that_the_page_leaves_open_are_an_error():
  page = _page()
  page['train_data'] = {**page['train_data'], 'max_length': None}
  with pytest.raises(ValueError, match=r'Set train_data.max_length'):
    plan.make(page, forests.CONFIG, topologies.devices('cpu:1'))
