"""Runs on rollouts: reruns, meshes, accumulation, and what is refused."""

import json
import os
import shutil
import signal
from unittest import mock

import numpy as np
import pytest

from dpo_jax import export, methods, run_actions, sampling, train
from dpo_jax.methods import collection
from dpo_jax.training import step as steps_lib
from experiments.crashes import runs
from tests import online_pages, tiny_rewards

NAMES = sorted(online_pages.METHODS)
EIGHT = dict(data=2, fsdp=2, tensor=2, devices=8)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp('online')
  online_pages.tiny.write(path)
  return path


@pytest.fixture(scope='module')
def whole(folder, tmp_path_factory):
  """whole(name): the directory of a run that nothing disturbed."""
  known = {}

  def run(name):
    if name not in known:
      known[name] = tmp_path_factory.mktemp(name) / 'run'
      train.train(known[name], online_pages.page(folder, name))
    return known[name]

  return run


def _rows(workdir) -> list[dict]:
  return [json.loads(row) for row in runs.timeless_rows(workdir)]


def test_a_run_logs_collections_and_steps_and_leaves_a_policy(whole):
  rows = _rows(whole('ppo'))
  collections = [row for row in rows if 'rollouts/reward' in row]
  assert [row['step'] for row in collections] == [4, 8, 12]
  steps = [row for row in rows if 'loss' in row]
  assert [row['step'] for row in steps] == list(range(1, 13))
  # The first minibatch is of the policy that sampled, the last one is not.
  assert steps[0]['policy/ratio'] == pytest.approx(1, abs=1e-5)
  assert steps[0]['policy/approximate_kl'] < 1e-8
  assert steps[3]['policy/approximate_kl'] > 1e-6
  assert collections[0]['rollouts/kl'] == pytest.approx(0, abs=1e-4)
  assert collections[0]['rollouts/explained_variance'] == pytest.approx(0)
  coefficients = [row['rollouts/kl_coefficient'] for row in collections]
  assert coefficients[0] == pytest.approx(0.05) != coefficients[1]
  assert (whole('ppo') / 'params' / 'model.safetensors').exists()
  assert (whole('ppo') / 'curves.png').exists()


@pytest.mark.parametrize(
  ('name', 'told'),
  [
    ('ppo', ['| Reward | name=function', '| Rollouts | num_prompts=8']),
    pytest.param(
      'drifting', ['| Preference | path=tests'], marks=pytest.mark.long
    ),
  ],
)
def test_a_run_is_exported(whole, tmp_path, name, told):
  """Its policy alone, from params/ or from a checkpoint."""
  for checkpoint in ('params', 'latest'):
    out = tmp_path / checkpoint
    source = export.choose(str(whole(name)), checkpoint=checkpoint)
    export.export(source, str(out))
    card = (out / 'README.md').read_text()
    assert all(text in card for text in [*told, '| Reference | '])
  files = [tmp_path / x / 'model.safetensors' for x in ('params', 'latest')]
  assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize(
  ('name', 'calls'),
  [
    ('ppo', 2),
    *(
      pytest.param(name, 2, marks=pytest.mark.long)
      for name in NAMES
      if name != 'ppo'
    ),
    # At the end of a collection, whose checkpoint is written.
    pytest.param('ppo', 4, marks=pytest.mark.long),
  ],
)
def test_a_stopped_run_ends_with_the_same_bits(
  folder, whole, tmp_path, monkeypatch, name, calls
):
  """A SIGTERM comes while a collection is made, or is trained on."""
  patched, done = collection.rollouts_lib, []
  draw, place = patched.draw, patched.on_mesh

  def stop_in(fn):
    def run(*args, **kwargs):
      done.append(fn)
      if len(done) == 2 * calls:
        os.kill(os.getpid(), signal.SIGTERM)
      return fn(*args, **kwargs)

    return run

  with monkeypatch.context() as patch:
    patch.setattr(patched, 'draw', stop_in(draw))
    patch.setattr(patched, 'on_mesh', stop_in(place))
    with pytest.raises(SystemExit) as stopped:
      train.train(tmp_path / 'run', online_pages.page(folder, name))
  assert stopped.value.code == run_actions.TERMINATED
  train.train(tmp_path / 'run', online_pages.page(folder, name))
  assert _rows(tmp_path / 'run') == _rows(whole(name))
  for file in ('params/model.safetensors',):
    there, here = (
      (x / file).read_bytes() for x in (whole(name), tmp_path / 'run')
    )
    assert there == here


@pytest.mark.long
def test_the_train_step_is_compiled_once(folder, tmp_path, monkeypatch):
  traced = []
  make = steps_lib.pure_train_step

  def counted(*args, **kwargs):
    step = make(*args, **kwargs)

    def train_step(*arrays):
      traced.append(step)
      return step(*arrays)

    return train_step

  monkeypatch.setattr(steps_lib, 'pure_train_step', counted)
  train.train(tmp_path / 'run', online_pages.page(folder))
  assert len(traced) == 1


def _assert_close(workdir, expected):
  for here, there in zip(_rows(workdir), _rows(expected), strict=True):
    assert here.keys() == there.keys()
    for name in here:
      np.testing.assert_allclose(
        here[name], there[name], rtol=2e-3, atol=2e-4, err_msg=name
      )


@pytest.mark.long
@pytest.mark.parametrize('name', NAMES)
def test_a_mesh_gives_the_numbers_of_one_device(folder, whole, tmp_path, name):
  page = online_pages.page(folder, name, mesh=EIGHT)
  train.train(tmp_path / 'run', page)
  _assert_close(tmp_path / 'run', whole(name))


@pytest.mark.long
def test_prompts_that_wait_change_no_number(folder, whole, tmp_path):
  page = online_pages.page(folder, 'rloo')
  page['rollouts'] |= dict(batch_size=3)
  with mock.patch.object(sampling, 'sample', wraps=sampling.sample) as spy:
    train.train(tmp_path / 'run', page)
  assert {call.kwargs['batch_size'] for call in spy.call_args_list} == {3}
  _assert_close(tmp_path / 'run', whole('rloo'))


@pytest.mark.long
@pytest.mark.parametrize('name', ['ppo', 'online_dpo'])
@pytest.mark.parametrize('parts', [2, 4])
def test_accumulation_changes_no_number(folder, whole, tmp_path, name, parts):
  page = online_pages.page(folder, name)
  page['step'] |= dict(accumulation_steps=parts)
  train.train(tmp_path / 'run', page)
  _assert_close(tmp_path / 'run', whole(name))


@pytest.mark.parametrize(
  ('name', 'changes', 'message'),
  [
    ('ppo', dict(reward=None), 'needs a reward, or a preference .* neither'),
    (
      'drifting',
      dict(reward=online_pages.REWARD),
      'needs a reward, or a preference .* both',
    ),
    ('ppo', dict(value=None), 'has a value model, and the page has no section'),
    ('rloo', dict(value=dict(shared=True)), 'has no value model, and the page'),
    ('ppo', dict(value=dict(shared=True, uri='x')), "value.uri is 'x', but"),
    ('ppo', dict(steps=10), 'steps is 10, but a collection takes 4 steps'),
    (
      'ppo',
      dict(checkpoints=dict(every=6, keep=1)),
      'checkpoints.every is 6, but a collection takes 4',
    ),
    (
      'ppo',
      dict(reward=dict(name='function', path='tests.tiny_rewards:letters')),
      "has no 'letters'. Did you mean 'letter'",
    ),
    (
      'ppo',
      dict(method=dict(name='ppo', advantage='gea')),
      "Unknown advantage 'gea'. Did you mean 'gae'",
    ),
    (
      'ppo',
      dict(method=dict(name='ppo', kl_in='loss')),
      "kl_in='loss' needs kl_estimator='k3'",
    ),
    ('ppo', dict(method=dict(name='ppo', discount=1.5)), 'discount'),
    (
      'ppo',
      dict(method=dict(name='ppo', target_kl=1.0, kl_coefficient=0.0)),
      'which is 0 and stays 0',
    ),
    (
      'ppo',
      dict(method=dict(name='ppo', horizon=100)),
      'horizon is 100, but without target_kl',
    ),
    (
      'online_dpo',
      dict(method=dict(name='online_dpo', loss='dop', beta=0.1)),
      "Unknown preference loss 'dop'. Did you mean",
    ),
    (
      'ppo',
      dict(train_batches=dict(batch_size=8)),
      'train_batches is of a page without rollouts',
    ),
    ('ppo', dict(method=dict(name='dpo', loss='dpo', beta=0.1)), "'dpo'"),
    *(
      (
        'online_dpo',
        dict(method=dict(name='online_dpo', **options)),
        'online DPO takes losses of pairs, and no correction_weight',
      )
      for options in (
        dict(loss='dpo', beta=0.1, correction_weight=2.0, length='mean'),
        dict(loss='slic', target='answer'),
      )
    ),
    (
      'ppo',
      dict(checkpoints=dict(every=4, keep=1, best='rollouts/reward')),
      "a metric of the section `samples`, such as 'samples/reward'",
    ),
  ],
)
def test_mistakes_of_a_page(folder, tmp_path, name, changes, message):
  with pytest.raises(ValueError, match=message):
    train.train(tmp_path / 'run', online_pages.page(folder, name, **changes))
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  ('name', 'changes', 'message'),
  [
    ('ppo', dict(minibatches=3), 'does not divide into .*minibatches=3'),
    ('ppo', dict(temperature=0.7), 'needs samples of the policy itself'),
    ('rloo', dict(num_samples=1), 'compares 2 or more of a prompt'),
    ('online_dpo', dict(num_samples=1), 'compares 2 or more of a prompt'),
    ('ppo', dict(max_new_tokens=60), 'train_data: .* the model has 64 posit'),
    ('ppo', dict(batch_size=0), 'rollouts.batch_size is 0; expected'),
    ('ppo', dict(num_samples=None), 'rollouts.num_samples is None'),
    ('ppo', dict(epoch=2), "Unknown option of rollouts 'epoch'"),
  ],
)
def test_mistakes_of_rollouts(folder, tmp_path, name, changes, message):
  page = online_pages.page(folder, name)
  page['rollouts'] = page['rollouts'] | changes
  with pytest.raises(ValueError, match=message):
    train.train(tmp_path / 'run', page)
  assert not (tmp_path / 'run' / 'metrics.jsonl').exists()


def test_an_online_method_needs_rollouts(folder):
  page = online_pages.tiny.page(folder)
  with pytest.raises(ValueError, match='needs sections `rollouts` and'):
    methods.build(dict(page['method'], name='ppo'))


@pytest.mark.parametrize(
  ('path', 'error', 'message'),
  [
    ('nans', ValueError, "'function' returned nan for the completion"),
    ('too_few', ValueError, r'returned an array of shape \(15,\)'),
    ('fails', RuntimeError, "'function' failed on 16 completions: ZeroDiv"),
    ('ties', ValueError, '0 have samples to train on'),
  ],
)
def test_rewards_that_fail(folder, tmp_path, path, error, message):
  reward = dict(name='function', path=f'tests.tiny_rewards:{path}')
  page = online_pages.page(folder, 'online_dpo', reward=reward)
  with pytest.raises(error, match=message):
    train.train(tmp_path / 'run', page)


@pytest.mark.long
def test_prompts_whose_samples_tie_are_sampled_again(
  folder, tmp_path, monkeypatch
):
  monkeypatch.setattr(tiny_rewards, 'CALLS', [])
  reward = dict(name='function', path='tests.tiny_rewards:sometimes_ties')
  page = online_pages.page(folder, 'online_dpo', reward=reward)
  train.train(tmp_path / 'run', page)
  calls = tiny_rewards.CALLS
  assert len(calls) == 3 + len(tiny_rewards.TIED)
  # Other samples, of the same prompts.
  assert calls[0] != calls[1] and len({*map(tuple, calls)}) == len(calls)
  collections = [
    row for row in _rows(tmp_path / 'run') if 'rollouts/reward' in row
  ]
  assert [row['step'] for row in collections] == [4, 8, 12]
  assert all(row['rollouts/untied'] > 0.5 for row in collections)


def test_the_coefficient_that_is_logged_is_that_of_the_steps(folder, tmp_path):
  """With kl_in='loss', where it is in the loss of the steps."""
  method = dict(
    name='ppo', advantage='leave_one_out', kl_in='loss', kl_estimator='k3'
  )
  method |= dict(kl_coefficient=3.0, target_kl=0.5, horizon=16.0)
  page = online_pages.page(folder, 'rloo', method=method, steps=3)
  page['rollouts'] |= dict(minibatches=1, epochs=1)
  train.train(tmp_path / 'run', page)
  rows = _rows(tmp_path / 'run')
  steps = [row for row in rows if 'loss' in row]
  collections = [row for row in rows if 'rollouts/kl_coefficient' in row]
  used = [row['rollouts/kl_coefficient'] for row in collections]
  assert used[0] == 3 and used[1] < 2.9
  for step, of, coefficient in zip(steps[1:], collections[1:], used[1:]):
    kl = of['rollouts/kl_k3'] / of['rollouts/length']  # Mean over tokens.
    assert kl > 1e-5
    assert step['loss'] - step['policy/loss'] == pytest.approx(
      coefficient * kl, rel=1e-3
    )


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ('vocabulary', 'value.uri .* has another tokenizer than the policy'),
    ('positions', 'the value model has 8 positions'),
  ],
)
def test_a_value_model_of_another_kind(folder, tmp_path, change, message):
  other = tmp_path / 'value'
  shutil.copytree(folder / 'model', other)
  if change == 'vocabulary':
    path = other / 'tokenizer.json'
    values = json.loads(path.read_text())
    merges = values['model']['merges']
    values['model']['merges'] = merges[: len(merges) // 2]
  else:
    path = other / 'config.json'
    values = json.loads(path.read_text()) | dict(max_position_embeddings=8)
  path.write_text(json.dumps(values))
  page = online_pages.page(folder, value=dict(uri=str(other)))
  with pytest.raises(ValueError, match=message):
    train.train(tmp_path / 'run', page)


@pytest.mark.long
def test_another_reward_does_not_go_on_with_a_run(
  folder, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  module = tmp_path / f'reward_{tmp_path.name.replace("-", "_")}.py'
  text = (
    'def fn(prompts, completions):\n  return [len(x) for x in completions]\n'
  )
  module.write_text(text)
  reward = dict(name='function', path=f'{module.stem}:fn')
  page = online_pages.page(folder, 'online_dpo', reward=reward)
  train.train(tmp_path / 'run', page)
  (tmp_path / 'run' / 'params').rename(tmp_path / 'gone')
  module.write_text(text.replace('len(x)', '-len(x)'))
  with pytest.raises(ValueError, match=r'reward \(reward_.*SHA-256'):
    train.train(tmp_path / 'run', page)
  module.write_text(text)
  train.train(tmp_path / 'run', page)


@pytest.mark.long
def test_bfloat16_measures_the_samplers_gap(folder, tmp_path, monkeypatch):
  """Beyond the bound, log-probabilities are those of a scoring pass."""
  page = online_pages.page(folder, steps=4)
  page['model'] = page['model'] | dict(dtype='bfloat16')
  ratios = []
  for bound in (10.0, 0.0):
    monkeypatch.setattr(collection, 'MAX_LOGP_GAP', bound)
    workdir = tmp_path / str(bound)
    train.train(workdir, page)
    rows = _rows(workdir)
    (found,) = (row for row in rows if 'rollouts/logp_gap' in row)
    assert found['rollouts/logp_gap'] > 0
    assert found['rollouts/rescored'] == (bound == 0)
    ratios.append(rows[0]['policy/approximate_kl'])
  # The train step finds what the scoring pass found, but for fusion.
  assert ratios[1] <= ratios[0]


def test_float32_is_not_scored_again(whole):
  assert not any('rollouts/logp_gap' in row for row in _rows(whole('ppo')))
