"""The main door: a whole run, and what it refuses before it starts."""

import copy
import json
import math
import os
import pathlib
import shutil
import signal
import subprocess
import sys
from concurrent import futures

import jax
import numpy as np
import pytest
from ml_collections import config_dict

from configs import movies_dpo, movies_sft, quickstart
from dpo_jax import models, run_actions, settings, train, weights
from dpo_jax.training import run_log
from tests import compilations, tiny

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A tiny model, and pairs that it can learn from."""
  path = tmp_path_factory.mktemp('tiny')
  tiny.write(path)
  return path


@pytest.fixture
def config(folder):
  return tiny.page(folder)


def _train(config, workdir):
  return train.train(workdir, config).metrics


def _metrics(workdir, key='step'):
  """Rows of metrics.jsonl that have `key`."""
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return [row for row in map(json.loads, lines) if key in row]


def test_dpo_learns_held_out_preferences(config, tmp_path):
  last = _train(config, tmp_path / 'run')
  rows = _metrics(tmp_path / 'run')
  assert [row['step'] for row in rows] == [0, 4, 8, 12, 12]
  assert rows[0]['eval/loss'] == pytest.approx(math.log(2), abs=1e-6)
  assert rows[0]['eval/rewards/accuracies'] == 0
  assert rows[-1]['eval/rewards/accuracies'] > 0.9
  assert rows[-1] == {'step': 12, **last}
  logged = {'loss', 'grad_norm', 'lr', 'tokens_per_second', 'nonfinite'}
  assert logged | {'rewards/margins', 'logps/chosen'} <= set(rows[1])
  assert rows[1]['lr'] == pytest.approx(3e-3)

  # The saved parameters are the trained ones: they start where training ended.
  again = copy.deepcopy(config) | dict(steps=2)
  again['method'] = dict(name='dpo', beta=0.1)
  again['model']['uri'] = str(tmp_path / 'run' / 'params')
  _train(again, tmp_path / 'again')
  first = _metrics(tmp_path / 'again')[0]
  assert first['eval/logps/chosen'] == pytest.approx(
    last['eval/logps/chosen'], rel=1e-5
  )


def test_a_notebook_gives_a_string_and_a_page_in_a_thread(config, tmp_path):
  """As `get_config` returns it, outside of the main thread."""
  page = config_dict.ConfigDict(config | dict(steps=2, eval_every=2))
  with futures.ThreadPoolExecutor(1) as threads:
    run = threads.submit(train.train, str(tmp_path / 'run'), page)
    result = run.result()
  assert result.metrics == _metrics(tmp_path / 'run', 'eval/loss')[-1]
  assert result.workdir == tmp_path / 'run'
  for path in (result.params, result.checkpoints, result.curves):
    assert path.exists()
  assert 'held out' in result.summary.read_text()
  # Sections may be pages' own, and paths be paths.
  mixed = {**page, 'model': {**page.model, 'uri': pathlib.Path(page.model.uri)}}
  assert train.train(result.workdir, mixed) == result
  # A finished run has the same result.
  assert train.train(result.workdir, page.to_dict()) == result


@pytest.mark.long
def test_splits_devices_and_cache_leave_the_curve_alone(config, tmp_path):
  curves = []
  for i, (accumulation, devices, reference) in enumerate(
    [(1, 1, 'cached'), (2, 1, 'cached'), (2, 4, 'in_step')]
  ):
    config['step'] = dict(accumulation_steps=accumulation, max_grad_norm=1.0)
    config['method']['reference'] = reference
    config['mesh'] = dict(devices=devices)
    config |= dict(steps=4, log_every=1, eval_every=4)
    _train(config, tmp_path / str(i))
    keys = ('loss', 'grad_norm', 'rewards/margins', 'logps/rejected')
    rows = _metrics(tmp_path / str(i), 'loss')
    curves.append([[row[k] for k in keys] for row in rows])
  np.testing.assert_allclose(curves[1], curves[0], rtol=1e-3, atol=1e-4)
  np.testing.assert_allclose(curves[2], curves[0], rtol=1e-3, atol=1e-4)


def test_sigterm_saves_and_the_same_call_goes_on(config, tmp_path, monkeypatch):
  """In one process; of processes and bit for bit: crash_test.py."""
  config |= dict(steps=6, log_every=1, eval_every=6)
  config['checkpoints'] = dict(every=6, keep=1)
  write = run_log.Log.write

  def write_and_stop(self, step, row):
    write(self, step, row)
    if step == 2:
      os.kill(os.getpid(), signal.SIGTERM)

  with monkeypatch.context() as patch:
    patch.setattr(run_log.Log, 'write', write_and_stop)
    with pytest.raises(SystemExit) as stopped:
      _train(config, tmp_path / 'run')
  assert stopped.value.code == run_actions.TERMINATED
  saved = [p.name for p in (tmp_path / 'run' / 'checkpoints').iterdir()]
  assert saved in (['3'], ['4']) and not (tmp_path / 'run' / 'params').exists()
  _train(config, tmp_path / 'run')
  steps = [row['step'] for row in _metrics(tmp_path / 'run', 'loss')]
  assert steps == [1, 2, 3, 4, 5, 6]


@pytest.mark.long
def test_a_logged_row_is_the_mean_of_its_steps(config, tmp_path):
  rows = []
  for every in (1, 4):
    config |= dict(steps=4, log_every=every, eval_every=4)
    _train(config, tmp_path / str(every))
    rows.append(_metrics(tmp_path / str(every), 'loss'))
  (whole,) = rows[1]
  for key in ('loss', 'grad_norm', 'rewards/margins', 'logps/chosen'):
    mean = np.mean([row[key] for row in rows[0]])
    assert whole[key] == pytest.approx(mean, rel=1e-5)


def test_sft_lowers_the_loss(config, tmp_path):
  config['method'] = dict(name='sft')
  config['schedule']['peak'] = 0.02
  for part in ('train', 'eval'):
    config[f'{part}_data']['kind'] = 'sft'
  _train(config, tmp_path / 'run')
  rows = _metrics(tmp_path / 'run')
  assert rows[-1]['eval/loss'] < 0.7 * rows[0]['eval/loss']


@pytest.mark.long
@pytest.mark.parametrize(
  'options',
  [
    dict(loss='bco'),
    dict(reference='drifting', reference_options=dict(every=2, mix=0.5)),
  ],
)
def test_what_a_method_keeps_survives_a_restart(options, config, tmp_path):
  """BCO's means and a drifting reference are in the checkpoint."""
  config |= dict(steps=6, log_every=1, eval_every=3)
  config['checkpoints'] = dict(every=3, keep=2)
  config['method'] = dict(name='dpo', beta=0.1, **options)
  _train(config, tmp_path / 'whole')
  shutil.copytree(tmp_path / 'whole', tmp_path / 'again')
  shutil.rmtree(tmp_path / 'again' / 'params')
  shutil.rmtree(tmp_path / 'again' / 'checkpoints' / '6')
  _train(config, tmp_path / 'again')
  whole, again = (
    (tmp_path / name / 'params' / 'model.safetensors').read_bytes()
    for name in ('whole', 'again')
  )
  assert whole == again
  config['method'] = dict(name='dpo', beta=0.1)
  _train(config, tmp_path / 'other')
  other = tmp_path / 'other' / 'params' / 'model.safetensors'
  assert other.read_bytes() != whole


def test_what_a_run_leaves(config, tmp_path, capsys):
  """Samples of the same prompts and keys, their KL to the start, pictures."""
  config['samples'] = dict(
    every=6, num_prompts=2, num_samples=3, max_new_tokens=5, reward='vader'
  )
  config['log'] = dict(tensorboard=True)
  run = tmp_path / 'run'
  last = _train(config, run)
  found = {}
  for step in (0, 6, 12):
    lines = (run / 'samples' / f'{step:06d}.jsonl').read_text().splitlines()
    found[step] = [json.loads(line) for line in lines]
  prompts = [row['prompt'] for row in found[0]]
  assert len(prompts) == 6 and len(set(prompts)) == 2
  for rows in found.values():
    assert [row['prompt'] for row in rows] == prompts
  assert [row['kl'] for row in found[0]] == [0.0] * 6
  rows = _metrics(run, 'samples/kl')
  assert [row['step'] for row in rows] == [0, 6, 12]
  assert rows[0]['samples/kl'] == 0 < rows[1]['samples/kl']
  assert {'samples/length', 'samples/repetition', 'samples/vader_positive'} <= (
    rows[2].keys()
  )
  low, high = (
    last[f'eval/rewards/accuracies_{end}'] for end in ('low', 'high')
  )
  assert low < last['eval/rewards/accuracies'] <= high
  names = {path.name for path in run.iterdir()} - {'.lock'}
  assert names == {
    *('config.json', 'inputs.json', 'metrics.jsonl', 'curves.png'),
    *('summary.txt', 'samples', 'tensorboard', 'checkpoints', 'params'),
  }
  # The texts, before and after, and the numbers are shown at the end.
  shown = capsys.readouterr().out
  assert found[0][0]['text'].split()[0] in shown
  assert (run / 'summary.txt').read_text() in shown


@pytest.mark.parametrize('page', [quickstart, movies_sft, movies_dpo])
@pytest.mark.parametrize('variant', ['', 'tiny'])
def test_pages_are_whole(page, variant):
  config = page.get_config(variant).to_dict()
  run = settings.of(config)
  assert run.steps == config['steps']


def test_the_second_stage_holds_out_what_the_first_did():
  first, second = movies_sft.get_config(), movies_dpo.get_config()
  fraction = {
    c[f'{part}_data'].held_out_fraction
    for c in (first, second)
    for part in ('train', 'eval')
  }
  assert len(fraction) == 1


def _set(path, value):
  def change(config):
    *sections, key = path.split('.')
    for section in sections:
      config = config[section]
    config[key] = value

  return change


def _unpaired(config):
  """Good answers first, as in a file that is sorted."""
  folder = pathlib.Path(config['model']['uri']).parent
  rows = [
    {'prompt': f'a{i}', 'completion': f' b{i}', 'label': i < 8}
    for i in range(12)
  ]
  config['method'] = dict(name='kto', loss='bco', beta=0.1)
  for part, name in (('train', 'other.jsonl'), ('eval', 'one.jsonl')):
    path = folder / name
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    config[f'{part}_data'] |= dict(path=str(path), kind='unpaired')
  config['eval_batches']['num_examples'] = 4


BAD_CONFIGS = {
  'method.bta': (_set('method.bta', 1), "'bta'.*Did you mean 'beta'"),
  'method.name': (_set('method.name', 'dpoo'), "Did you mean 'dpo'"),
  'method.loss': (_set('method.loss', 'dqo'), "Did you mean 'dpo'"),
  'optimizer': (_set('optimizer.b3', 1), "option of optimizer 'adamw' 'b3'"),
  'optimizer.name': (_set('optimizer.name', 'adamm'), "mean 'adamw'"),
  'schedule': (_set('schedule.warmup_steps', 99), 'warmup_steps is 99'),
  'top level': (_set('stepz', 1), "option of the config 'stepz'.*steps"),
  'model': (_set('model.atention', 'tree'), "Did you mean 'attention'"),
  'attention': (_set('model.attention', 'tre'), "Did you mean 'tree'"),
  'batches': (_set('train_batches.batch', 8), "Did you mean 'batch_size'"),
  'step': (_set('step.accumulation', 2), "mean 'accumulation_steps'"),
  'mesh': (_set('mesh.data', 99), 'mesh is data=99.*but there are 1 devices'),
  'distributed': (_set('distributed.time', 9), "Did you mean 'timeout'"),
  'divides': (_set('step.accumulation_steps', 3), 'does not divide'),
  'data option': (_set('train_data.max_len', 8), "Did you mean 'max_length'"),
  'seed': (_set('seed', -1), 'seed is -1'),
  'no steps': (_set('steps', 0), 'steps is 0'),
  'log_every': (_set('log_every', 0), 'log_every is 0'),
  'batch_size': (_set('train_batches.batch_size', 0), 'batch_size is 0'),
  'eval batch': (_set('eval_batches.batch_size', 0), 'batch_size is 0'),
  'accumulation': (_set('step.accumulation_steps', 0), 'steps is 0'),
  'max_shapes': (_set('train_batches.max_shapes', 0), 'max_shapes is 0'),
  'clip': (_set('step.max_grad_norm', -1.0), 'max_grad_norm is -1'),
  'smoothing': (_set('method.label_smoothing', 0.7), 'label_smoothing is 0.7'),
  'beta': (_set('method.beta', 0.0), 'beta is 0'),
  'chunk': (_set('method.logprob_chunks', 8), "mean 'logprob_chunk'"),
  'kind': (
    _set('train_data.kind', 'sft'),
    "of kind='sft', but the method takes 'pairs'",
  ),
  'no marks': (
    _set('method.correction_weight', 5.0),
    'needs train_data.corrections',
  ),
  'unread marks': (
    _set('eval_data.corrections', 'diff'),
    'eval_data.corrections marks .* no correction_weight',
  ),
  'unread reference': (
    lambda c: [
      c.update(method=dict(name='dpo', loss='simpo', beta=2.0)),
      c['model'].update(reference=c['model']['uri'] + '/.'),
    ],
    'model.reference is .* has no reference',
  ),
  'one class': (_unpaired, 'one.jsonl:1 .*first 4 held-out .* shuffle'),
  'positions': (
    lambda c: [
      c['train_data'].update(max_length=900, max_prompt_length=800),
      c['train_data'].update(path=c['model']['uri'] + '/../long.jsonl'),
    ],
    'long.jsonl:1: prompt and completion are .* 64 positions',
  ),
}


@pytest.mark.parametrize('name', BAD_CONFIGS)
def test_bad_configs_are_errors(name, config, folder, tmp_path):
  row = {'prompt': 'a' * 90, 'chosen': ' b', 'rejected': ' c'}
  (folder / 'long.jsonl').write_text(json.dumps(row))
  change, message = BAD_CONFIGS[name]
  change(config)
  with pytest.raises(ValueError, match=message):
    _train(config, tmp_path / 'run')


def test_a_tokenizer_of_another_model_is_an_error(config, folder, tmp_path):
  small = models.ModelConfig(
    vocab_size=40,
    num_layers=1,
    d_model=8,
    num_heads=1,
    num_kv_heads=1,
    head_dim=8,
    d_ff=8,
    max_positions=64,
  )
  path = tmp_path / 'small'
  weights.save(path, small, models.init(jax.random.key(0), small))
  config['model'].update(uri=str(path), tokenizer=str(folder / 'model'))
  with pytest.raises(
    ValueError, match=r'tokenizer has \d+ tokens, .* vocabulary of 40'
  ):
    _train(config, tmp_path / 'run')


def test_steps_that_are_not_finite_stop_the_run(config, tmp_path):
  config['schedule']['peak'] = 1e30
  with pytest.raises(FloatingPointError, match=r'3 steps .*train.jsonl:\d'):
    _train(config, tmp_path / 'run')


def test_every_shape_compiles_once(config, tmp_path):
  config |= dict(steps=3, log_every=1)
  config['train_batches']['max_shapes'] = 1
  with compilations.recorded() as compiled:
    _train(config, tmp_path / 'run')
  steps = [n for n in compiled if n in ('jit(train_step)', 'jit(score)')]
  assert sorted(steps) == ['jit(score)', 'jit(train_step)']


def test_one_value_says_what_is_held_out():
  c = quickstart.get_config()
  c.eval_data.held_out_fraction = 0.3
  assert c.train_data.held_out_fraction == 0.3


def _command(*args):
  env = dict(os.environ, PYTHONPATH=str(ROOT))
  return subprocess.run(
    [sys.executable, '-m', 'dpo_jax.train', *args],
    cwd=ROOT,
    env=env,
    capture_output=True,
    text=True,
  )


def test_the_command_refuses_a_used_workdir_and_unknown_flags(tmp_path):
  (tmp_path / 'file').write_text('x')
  config = '--config=configs/quickstart.py:tiny'
  used = _command(config, f'--workdir={tmp_path}')
  assert used.returncode and 'is not empty' in used.stderr
  unknown = _command(config, '--workdir=x', '--config.method.bta=1')
  assert unknown.returncode and 'beta' in unknown.stderr


@pytest.mark.long
@pytest.mark.download
def test_the_quickstart_runs(smollm2_gguf, movie_file, tmp_path):
  config = '--config=configs/quickstart.py:tiny'
  done = _command(config, f'--workdir={tmp_path / "run"}')
  assert not done.returncode, done.stderr[-3000:]
  rows = _metrics(tmp_path / 'run')
  assert rows[0]['eval/loss'] == pytest.approx(math.log(2), abs=1e-3)
  last = [row for row in rows if 'eval/loss' in row][-1]
  assert last['step'] == 2 and last['eval/rewards/margins'] > 0
  settings = json.loads((tmp_path / 'run' / 'config.json').read_text())
  assert settings['steps'] == 2
  saved = tmp_path / 'run' / 'params'
  assert json.loads((saved / 'config.json').read_text())['eos_token_id'] == 2
  assert (saved / 'tokenizer.json').exists()
