"""Evaluation of runs and of weights: training's own numbers, and a loop's."""

import dataclasses
import json
import math
import os
import pathlib
import re
import shutil
import subprocess
import sys
from unittest import mock

import jax
import numpy as np
import pytest

from dpo_jax import (
  evaluate,
  models,
  settings,
  tokenizers,
  train,
  weights,
)
from dpo_jax.evals import report as report_lib
from dpo_jax.training import checkpoints, curves
from tests import saved_params, tiny

ROOT = pathlib.Path(__file__).parent.parent
BETA = 0.3


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A run of BCO, whose loss reads what training has seen (its aux)."""
  folder = tmp_path_factory.mktemp('run')
  tiny.write(folder, num_train=24)
  config = tiny.page(folder)
  config |= dict(steps=4, log_every=4, eval_every=2)
  config['method'] = dict(name='dpo', loss='bco', beta=BETA)
  config['checkpoints'] = dict(
    every=2, keep=2, best='eval/loss', best_mode='max'
  )
  config['train_batches']['max_shapes'] = 1
  config['model']['attention'] = 'dense'
  # Pictures take longer than such a run.
  with mock.patch.object(curves, 'draw'):
    train.train(folder / 'run', config)
  return folder / 'run'


def _evaluated(mesh=None, **given):
  given = dict.fromkeys(('config', 'model', 'reference', 'checkpoint')) | given
  config, subject = evaluate.choose(**{'run': None} | given)
  config = evaluate.on_mesh(config, mesh, own=True)
  bound = settings.of(config)
  return evaluate.evaluate(bound, subject)


@pytest.mark.parametrize('reference', ['cached', 'in_step'])
def test_what_was_not_trained_is_its_reference_to_the_bit(run, reference):
  config = json.loads((run / 'config.json').read_text())
  config['method'] = dict(name='dpo', beta=1.0, reference=reference)
  report = _evaluated(config=config, model=config['model']['uri'])
  numbers = report['metrics']
  assert report['accuracy']['mean'] == report['margin']['mean'] == 0
  assert numbers['eval/rewards/margins'] == numbers['eval/rewards/chosen'] == 0
  # Beside another, the same batches are compared.
  report = _evaluated(config=config, model=str(run / 'params'))
  assert report['margin']['mean'] != 0


@pytest.fixture(scope='module')
def report(run):
  return _evaluated(run=str(run), checkpoint='latest')


def _logged(run, step):
  lines = (run / 'metrics.jsonl').read_text().splitlines()
  rows = map(json.loads, lines)
  (row,) = (r for r in rows if r['step'] == step and 'eval/loss' in r)
  return row


def test_a_checkpoint_has_the_numbers_that_training_logged(run, report):
  logged = _logged(run, 4)
  assert logged.pop('eval/examples') == report['examples'] == 21
  del logged['step']
  assert report['metrics'] == pytest.approx(logged, rel=1e-4, abs=1e-5)


def test_eight_devices_give_the_numbers_of_one(run, report):
  found = _evaluated('data=4,fsdp=2', run=str(run), checkpoint='latest')
  (values, tree), (expected, same) = map(jax.tree.flatten, (found, report))
  assert tree == same
  for a, b in zip(values, expected):
    assert a == (b if isinstance(b, str) else pytest.approx(b, 1e-5, 1e-5))


def test_means_without_an_interval_are_those_that_the_docs_name(report):
  names = report['metrics'].keys()
  bare = {n for n in names if f'{n}_low' not in names}
  bare -= {n for n in bare if n.endswith(('_low', '_high'))}
  per_token = {f'eval/logps_per_token/{x}' for x in ('chosen', 'rejected')}
  assert bare == {'eval/loss'} | per_token
  text = ' '.join((ROOT / 'docs' / 'curves.md').read_text().split())
  assert '`eval/loss` and `logps_per_token` have none' in text


def test_the_best_checkpoint_and_that_of_a_step(run, report):
  worst = max((0, 2, 4), key=lambda step: _logged(run, step)['eval/loss'])
  assert worst in (0, 2)
  found = _evaluated(run=str(run), checkpoint='2')
  assert found['metrics']['eval/loss'] == pytest.approx(
    _logged(run, 2)['eval/loss'], rel=1e-4
  )
  best = dict(best='eval/loss', best_mode='max')
  with checkpoints.open(run / 'checkpoints', keep=1, **best) as saved:
    assert saved.best_step() == 2
  like = jax.eval_shape(lambda: weights.load(run / 'params')[1])
  step, params = saved_params.read(run / 'checkpoints', 'best', like, **best)
  assert step == 2
  step, last = saved_params.read(run / 'checkpoints', 'latest', like)
  assert step == 4
  ended = weights.load(run / 'params')[1]
  jax.tree.map(np.testing.assert_array_equal, last, ended)
  assert any(
    (np.asarray(a) != b).any()
    for a, b in zip(*map(jax.tree.leaves, (params, ended)))
  )


def test_reading_checkpoints_leaves_them_alone(run):
  before = sorted(p for p in run.rglob('*'))
  like = jax.eval_shape(lambda: weights.load(run / 'params')[1])
  saved_params.read(run / 'checkpoints', '2', like)
  assert sorted(p for p in run.rglob('*')) == before
  for which in ('3', 'best'):
    with pytest.raises(ValueError, match=f"'{which}'.*Known: 2, 4, latest"):
      saved_params.read(run / 'checkpoints', which, like)
  with pytest.raises(ValueError, match='another model'):
    saved_params.read(run / 'checkpoints', '2', {'embed': like['embed']})


def test_a_damaged_checkpoint_is_not_read(run, tmp_path):
  shutil.copytree(run / 'checkpoints', tmp_path / 'saves')
  files = [p for p in (tmp_path / 'saves' / '4').rglob('*') if p.is_file()]
  largest = max(files, key=lambda p: p.stat().st_size)
  *before, last = largest.read_bytes()
  largest.write_bytes(bytes([*before, last ^ 1]))
  like = jax.eval_shape(lambda: weights.load(run / 'params')[1])
  with pytest.raises(ValueError, match=r'4. is damaged'):
    saved_params.read(tmp_path / 'saves', 'latest', like)


def _plain_logps(folder, texts):
  """(sum of log p of each completion, its tokens), one text at a time."""
  config, params = weights.load(folder)
  tokenizer = tokenizers.load(folder)
  compute = models.Compute(attention='dense')

  @jax.jit
  def logps(ids_BxL):
    hidden = models.forward(params, config, ids_BxL, compute=compute)
    return jax.nn.log_softmax(models.logits(params, config, hidden), axis=-1)

  ids_BxL = np.zeros((len(texts), 48), np.int32)
  spans = []
  for b, (prompt, completion) in enumerate(texts):
    head = tokenizer.encode(prompt)
    tail = [*tokenizer.encode(completion), tokenizer.eos_id]
    ids_BxL[b, : len(head) + len(tail)] = [*head, *tail]
    spans.append((len(head), len(head) + len(tail)))
  all_BxLxV = np.float64(logps(ids_BxL))
  sums = [
    sum(all_BxLxV[b, i - 1, ids_BxL[b, i]] for i in range(*span))
    for b, span in enumerate(spans)
  ]
  return np.array(sums), np.array([end - begin for begin, end in spans])


def test_all_numbers_are_those_of_a_loop_over_texts(run, report):
  lines = (run.parent / 'eval.jsonl').read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  sides = {
    side: [(row['prompt'], row[side]) for row in rows]
    for side in ('chosen', 'rejected')
  }
  logps, ratios, tokens = {}, {}, {}
  for side, texts in sides.items():
    logps[side], tokens[side] = _plain_logps(run / 'params', texts)
    start, _ = _plain_logps(run.parent / 'model', texts)
    ratios[side] = logps[side] - start
    found = report['perplexity'][side]
    expected = math.exp(-logps[side].sum() / tokens[side].sum())
    assert found['mean'] == pytest.approx(expected, rel=1e-4)
    assert found['tokens'] == tokens[side].sum()
  margins = BETA * (ratios['chosen'] - ratios['rejected'])
  assert report['margin']['mean'] == pytest.approx(margins.mean(), rel=1e-3)
  assert report['accuracy']['mean'] == pytest.approx((margins > 0).mean())
  for title, lengths in (
    ('chosen', tokens['chosen']),
    ('chosen - rejected', tokens['chosen'] - tokens['rejected']),
  ):
    bins = report['by_length'][title]
    assert len(bins) > 1
    for row in bins:
      inside = (row['from'] <= lengths) & (lengths <= row['to'])
      assert row['examples'] == inside.sum()
      assert row['margin']['mean'] == pytest.approx(
        margins[inside].mean(), rel=1e-3, abs=1e-4
      )
      assert row['accuracy']['mean'] == pytest.approx(
        (margins[inside] > 0).mean()
      )


def test_weights_by_themselves_with_a_page_and_a_reference(run):
  """SFT numbers of the start; then the trained model against itself."""
  page = tiny.page(run.parent, method='sft')
  start = str(run.parent / 'model')
  found = _evaluated(config=page, model=start)
  assert found['reference'] is None and 'accuracy' not in found
  (nats,) = (x['nats_per_token'] for x in found['perplexity'].values())
  assert nats == pytest.approx(found['metrics']['eval/loss'], rel=1e-5)
  with pytest.raises(ValueError, match=r'--reference is .* has no reference'):
    _evaluated(config=page, model=start, reference=start)

  page = tiny.page(run.parent)
  ended = str(run / 'params')
  found = _evaluated(config=page, model=str(run), reference=ended)
  assert found['model'] == found['reference'] == ended
  assert found['metrics']['eval/loss'] == pytest.approx(math.log(2), abs=1e-6)
  assert found['accuracy']['mean'] == found['margin']['mean'] == 0


def test_what_does_not_go_together(run, tmp_path):
  cases = [
    (dict(), "Give a run's directory"),
    (dict(config={}), "Give a run's directory"),
    (dict(run=str(tmp_path)), 'no directory of a run'),
    (dict(run=str(run / 'params')), 'no directory of a run'),
    (
      dict(config=tiny.page(run.parent), model='x', checkpoint='latest'),
      "--checkpoint is of a run, and 'x'",
    ),
  ]
  for given, message in cases:
    with pytest.raises(ValueError, match=re.escape(message)):
      _evaluated(**given)
  with pytest.raises(ValueError, match=r"'bests'.*Did you mean 'best'"):
    _evaluated(run=str(run), checkpoint='bests')


def test_a_model_of_another_architecture_needs_a_reference(run, tmp_path):
  config, _ = weights.load(run / 'params')
  tiny.save_model(
    tmp_path / 'other', dataclasses.replace(config, num_layers=1), seed=0
  )
  page = tiny.page(run.parent)
  page['model']['tokenizer'] = page['model']['uri']
  with pytest.raises(ValueError, match='another architecture') as error:
    _evaluated(config=page, model=str(tmp_path / 'other'))
  text = str(error.value)
  assert "num_layers is 2, the policy's 1" in text and '--reference' in text
  assert 'd_model' not in text and 'ModelConfig' not in text


def test_another_model_is_not_that_of_the_runs_config(run, tmp_path):
  """BCO's aux is read where the checkpoint is of the run of the config."""
  shutil.copytree(run, tmp_path / 'other')
  options = dict(config=None, reference=None, checkpoint='2')
  for other, own in ((None, True), (run, True), (tmp_path / 'other', False)):
    model = other and str(other)
    _, subject = evaluate.choose(run=str(run), model=model, **options)
    assert subject.own_config == own
  page = tiny.page(run.parent)
  options['config'] = page
  _, subject = evaluate.choose(run=None, model=str(run), **options)
  assert not subject.own_config


def test_a_ranking_is_told_by_its_best(run, tmp_path):
  rows = [
    {
      'prompt': 'The film',
      'completions': [f' is {x}.' for x in ('dull', 'great', word)],
      'ranking': [1, 2, 0],
    }
    for word in tiny.GOOD
  ]
  path = tmp_path / 'rankings.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  page = tiny.page(run.parent)
  page['method'] = dict(
    name='ranking', loss='plackett_luce', beta=BETA, num_answers=3
  )
  page['eval_data'] |= dict(path=str(path), kind='ranking')
  found = _evaluated(config=page, model=str(run.parent / 'model'))
  assert list(found['perplexity']) == list(found['by_length']) == ['best']
  texts = [('The film', ' is great.')] * len(rows)
  logps, tokens = _plain_logps(run.parent / 'model', texts)
  assert found['perplexity']['best']['mean'] == pytest.approx(
    math.exp(-logps.sum() / tokens.sum()), rel=1e-4
  )


def test_samples_and_their_reward_are_no_part_of_it(run):
  page = tiny.page(run.parent)
  page['samples'] = dict(every=1, reward='no such reward')
  options = dict(run=None, model=str(run), reference=None, checkpoint=None)
  config, _ = evaluate.choose(config=page, **options)
  settings.of(config)
  assert page['samples'] is not None


def test_data_without_examples(run, tmp_path):
  (tmp_path / 'none.jsonl').write_text('')
  page = tiny.page(run.parent)
  page['eval_data']['path'] = str(tmp_path / 'none.jsonl')
  with pytest.raises(ValueError, match=r'^eval_data: .* has no rows'):
    _evaluated(config=page, model=str(run / 'params'))


def test_what_a_run_does_not_have(run, tmp_path):
  ended, stopped = tmp_path / 'ended', tmp_path / 'stopped'
  for folder, name in ((ended, 'params'), (stopped, 'checkpoints/4')):
    (folder / name).mkdir(parents=True)
    shutil.copy(run / 'config.json', folder)
  with pytest.raises(ValueError, match=r'no checkpoints.*=params'):
    _evaluated(run=str(ended), checkpoint='latest')
  with pytest.raises(ValueError, match=r'no params: .* not ended.* steps 4\.'):
    _evaluated(run=str(stopped), checkpoint='params')
  shutil.rmtree(stopped / 'checkpoints' / '4')
  with pytest.raises(ValueError, match=r'has no checkpoints\. It holds'):
    _evaluated(run=str(stopped))


def test_the_command(run, report, tmp_path):
  out = tmp_path / 'out.json'
  env = dict(os.environ, PYTHONPATH=str(ROOT))
  done = subprocess.run(
    [
      *(sys.executable, '-m', 'dpo_jax.evaluate', str(run)),
      *('--checkpoint=latest', f'--out={out}'),
    ],
    cwd=ROOT,
    env=env,
    capture_output=True,
    text=True,
  )
  assert not done.returncode, done.stderr[-2000:]
  assert done.stdout.strip() == report_lib.show(report)
  written = json.loads(out.read_text())
  assert written['metrics'] == pytest.approx(report['metrics'], rel=1e-5)
  assert written['by_length'].keys() == report['by_length'].keys()
