"""Runs of a reward model, from every door."""

import contextlib
import copy
import json
import shutil
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from absl import logging

from dpo_jax import (
  evaluate,
  export,
  models,
  plan,
  rewards,
  sample,
  sampling_settings,
  settings,
  tokenizers,
  train,
  weights,
)
from dpo_jax.evals import report as report_lib
from dpo_jax.rewards import reward_model
from dpo_jax.training import checkpoint_folder, metrics
from tests import forests, tiny


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp('tiny')
  tiny.write(path)
  return path


def _page(folder, **method):
  c = tiny.page(folder)
  c['method'] = dict(name='reward_model', **method)
  c['normalise'] = dict(num_prompts=3, num_samples=4, max_new_tokens=6)
  return c


@pytest.fixture(scope='module')
def run(folder, tmp_path_factory):
  """(workdir, result) of a finished run."""
  workdir = tmp_path_factory.mktemp('run') / 'rm'
  return workdir, train.train(workdir, _page(folder))


def _texts(folder, count=6):
  lines = (folder / 'eval.jsonl').read_text().splitlines()[:count]
  rows = [json.loads(line) for line in lines]
  return [(r['prompt'], r[k]) for r in rows for k in ('chosen', 'rejected')]


def _rewards(params_dir, texts):
  """As training has them: the scalar at EOS after prompt and completion."""
  tokenizer = tokenizers.load(params_dir)
  config, params = weights.load(params_dir)
  out = []
  for prompt, completion in texts:
    ids = tokenizer.encode(prompt) + tokenizer.encode(completion)
    ids = jnp.array([[*ids, tokenizer.eos_id]])
    hidden = models.forward(params, config, ids)
    out.append(float(models.scalar(params, config, hidden)[0, -1]))
  return np.array(out)


def test_a_run_learns_its_pairs(run):
  workdir, result = run
  rows = metrics.read_jsonl(workdir / 'metrics.jsonl')
  first = next(row for row in rows if 'eval/loss' in row)
  assert 0.5 < first['eval/loss'] < 0.9
  assert result.metrics['eval/rewards/accuracies'] > 0.9
  low = result.metrics['eval/rewards/accuracies_low']
  assert 0.6 < low < result.metrics['eval/rewards/accuracies']
  assert result.metrics['eval/rewards/ties'] == 0
  assert result.metrics['eval/loss'] < first['eval/loss'] / 2
  assert any('pairs_per_second' in row for row in rows)


@pytest.mark.long
def test_transformers_gives_the_same_rewards(run, folder):
  _, result = run
  texts = _texts(folder)
  ours = _rewards(result.params, texts)
  assert (ours[::2] > ours[1::2]).mean() > 0.8
  peer = transformers.AutoModelForSequenceClassification.from_pretrained(
    result.params
  ).eval()
  tokenizer = transformers.AutoTokenizer.from_pretrained(result.params)
  # Its only special token is EOS, so it pads nothing: one text at a time.
  assert tokenizer.pad_token_id is peer.config.pad_token_id is None
  theirs = []
  for prompt, completion in texts:
    ids = tokenizer(
      prompt + completion + tokenizer.eos_token, return_tensors='pt'
    )['input_ids']
    with torch.no_grad():
      theirs.append(peer(ids).logits[0, 0])
  np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


def test_samples_of_the_start_have_mean_0(run, folder):
  _, result = run
  found = reward_model.read_normalisation(result.params)
  assert (found.samples, found.max_new_tokens) == (12, 6)
  assert found.reference == str(folder / 'model')
  assert found.std > 0 and abs(found.mean) < 10


def test_the_reward_of_the_run_is_normalised(run, folder):
  _, result = run
  texts = _texts(folder)
  mean = reward_model.read_normalisation(result.params).mean
  reward = rewards.build(
    dict(name='reward_model', model=str(result.params), batch_size=5)
  )
  assert reward([], []).shape == (0,)
  prompts, completions = zip(*texts, strict=True)
  found = reward(prompts, completions)
  np.testing.assert_allclose(
    found, _rewards(result.params, texts) - mean, rtol=1e-3, atol=1e-4
  )
  # The order and the length of the others do not matter.
  alone = reward(prompts[:1], completions[:1])
  np.testing.assert_allclose(alone, found[:1], rtol=1e-4, atol=1e-5)
  assert np.isfinite(reward([''], [''])).all()
  # Completions of one prompt share it.
  prompts = [prompts[i % 2] for i in range(7)]
  completions = [completions[i % len(completions)] + ' so' for i in range(7)]
  each = [reward([p], [c])[0] for p, c in zip(prompts, completions)]
  together = reward(prompts, completions)
  np.testing.assert_allclose(together, each, rtol=1e-4, atol=1e-5)
  assert np.ptp(each) > 1e-3


def test_bad_rewards(run, folder):
  uri = str(run[1].params)

  def build(**options):
    return rewards.build(dict(name='reward_model', **options))

  with pytest.raises(ValueError, match='needs model'):
    build()
  with pytest.raises(ValueError, match='batch_size is 0'):
    build(model=uri, batch_size=0)
  with pytest.raises(ValueError, match='is a language model; expected a'):
    build(model=str(folder / 'model'))([], [])
  with pytest.raises(
    ValueError, match=r'max_length is 65, but .* 64 positions'
  ):
    build(model=uri, max_length=65)([], [])
  with pytest.raises(RuntimeError, match=r'Completion 2 has .*expected 1 to 9'):
    build(model=uri, max_length=9)(['a', 'b'], [' is', ' is dull' * 9])


def test_prompts_without_room_for_completions(run):
  reward = rewards.build(dict(name='reward_model', model=str(run[1].params)))
  with mock.patch.object(logging, 'warning') as warning:
    reward.check_room('a', 8)
    assert not warning.called
    reward.check_room('a', 70)
    assert '70' in str(warning.call_args)
  with pytest.raises(
    ValueError, match=r'has \d+ tokens .* which reads 64 with'
  ):
    reward.check_room(' is dull' * 40, 8)
  rewards.build('vader').check_room('a' * 10**5, 10**5)


def test_a_reward_of_another_tokenizer(run, tmp_path):
  folder = tmp_path / 'copy'
  shutil.copytree(run[1].params, folder)
  path = folder / 'tokenizer.json'
  values = json.loads(path.read_text())
  values['added_tokens'].append(dict(values['added_tokens'][0]))
  values['added_tokens'][-1] |= dict(id=400, content='<more>')
  path.write_text(json.dumps(values))
  reward = rewards.build(dict(name='reward_model', model=str(folder)))
  with pytest.raises(ValueError, match='belong to two models'):
    reward([], [])


@pytest.mark.long
def test_a_stopped_run_ends_with_the_same_bits(
  run, folder, tmp_path, monkeypatch
):
  """It starts from the same random head, and is normalised once, at its end."""
  asked = iter([False] * 4 + [True])

  def stopped():
    with monkeypatch.context() as m:
      m.setattr(
        train.preemption,
        'sigterm',
        lambda: contextlib.nullcontext(lambda: next(asked)),
      )
      train.train(tmp_path / 'a', _page(folder))

  with pytest.raises(SystemExit):
    stopped()
  assert checkpoint_folder.steps_in(tmp_path / 'a' / 'checkpoints') == {5}
  assert not (tmp_path / 'a' / 'params').exists()
  result = train.train(tmp_path / 'a', _page(folder))
  expected = weights.load(run[1].params)[1]
  again = weights.load(result.params)[1]
  jax.tree.map(np.testing.assert_array_equal, again, expected)
  mine, its = (
    reward_model.read_normalisation(x.params) for x in (result, run[1])
  )
  assert mine == its


def _evaluate(**given):
  given = dict(run=None, config=None, model=None, reference=None) | given
  config, subject = evaluate.choose(**dict(checkpoint=None) | given)
  return evaluate.evaluate(settings.of(config), subject)


def test_evaluate_reports_what_training_logged(run):
  workdir, result = run
  for checkpoint in (None, 'latest'):
    report = _evaluate(run=str(workdir), checkpoint=checkpoint)
    assert report['metrics']['eval/loss'] == pytest.approx(
      result.metrics['eval/loss'], rel=1e-4
    )
    assert report['accuracy']['mean'] > 0.9
    assert 'perplexity' not in report and report['reference'] is None
    found = report['calibration']
    assert found['ties']['mean'] == 0 and 0 <= found['ece'] < 0.2
    assert sum(row['examples'] for row in found['bins']) == report['examples']
    mean = result.metrics['eval/rewards/mean']
    assert report['reward']['mean'] == pytest.approx(mean, rel=1e-3)
  text = report_lib.show(report)
  assert 'calibration error' in text and '0.9 to 1.0' in text


def test_export_writes_a_classifier(run, tmp_path):
  workdir, result = run
  export.export(export.choose(str(workdir)), tmp_path / 'out')
  config, params = weights.load(tmp_path / 'out')
  assert config.head == 'scalar'
  jax.tree.map(
    np.testing.assert_array_equal, params, weights.load(result.params)[1]
  )
  assert not (tmp_path / 'out' / 'generation_config.json').exists()
  card = (tmp_path / 'out' / 'README.md').read_text()
  assert 'AutoModelForSequenceClassification' in card
  assert reward_model.read_normalisation(
    tmp_path / 'out'
  ) == reward_model.read_normalisation(result.params)
  source = export.choose(str(workdir), checkpoint='latest')
  export.export(source, tmp_path / 'latest')
  again = weights.load(tmp_path / 'latest')[1]
  jax.tree.map(np.testing.assert_array_equal, again, params)


@pytest.mark.long
def test_a_classifier_is_a_start_as_it_is(run, folder, tmp_path):
  _, result = run
  page = _page(folder) | dict(steps=1, eval_every=1, log_every=1)
  page['model'] |= dict(uri=str(result.params), reference=str(folder / 'model'))
  page['schedule'] = dict(name='constant', peak=1e-9, warmup_steps=0)
  again = train.train(tmp_path / 'b', page)
  assert again.metrics['eval/loss'] == pytest.approx(
    result.metrics['eval/loss'], rel=1e-4
  )
  mine, its = map(
    reward_model.read_normalisation, (again.params, result.params)
  )
  assert mine.mean == pytest.approx(its.mean, abs=1e-4)
  page['model']['reference'] = None
  with pytest.raises(ValueError, match=r'is a reward model.*language model'):
    train.train(tmp_path / 'c', page)


@pytest.mark.long
def test_labels_train_a_classifier(folder, tmp_path):
  page = _page(folder, loss='binary') | dict(normalise=None)
  for part in ('train_data', 'eval_data'):
    page[part]['kind'] = 'unpaired'
  result = train.train(tmp_path / 'a', page)
  assert result.metrics['eval/rewards/accuracies'] > 0.8
  assert reward_model.read_normalisation(result.params) is None
  report = _evaluate(run=str(tmp_path / 'a'))
  assert report['accuracy']['mean'] > 0.8


@pytest.mark.long
def test_ratings_are_regressed(folder, tmp_path):
  page = _page(folder, loss='regression') | dict(normalise=None)
  for part in ('train', 'eval'):
    rows = [
      {'prompt': row['prompt'], 'completion': row[name], 'rating': rating}
      for row in tiny.rows(part == 'train', 40)
      for name, rating in (('chosen', 4.5), ('rejected', 2))
    ]
    path = tmp_path / f'{part}.jsonl'
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    page[f'{part}_data'] |= dict(kind='rated', path=str(path))
  page |= dict(steps=60, eval_every=60)
  result = train.train(tmp_path / 'a', page)
  # The variance of the ratings is 1.56.
  assert result.metrics['eval/loss'] < 0.5
  assert result.metrics['eval/ratings/mean'] == pytest.approx(3.25)
  report = _evaluate(run=str(tmp_path / 'a'))
  assert 'accuracy' not in report and 'calibration' not in report
  assert report['reward']['mean'] == pytest.approx(3.25, abs=0.7)


@pytest.mark.long
def test_a_mesh_gives_the_same_numbers(run, folder, tmp_path):
  page = _page(folder) | dict(normalise=None)
  page['mesh'] = dict(data=2, fsdp=2, tensor=2, devices=8)
  result = train.train(tmp_path / 'a', page)
  for name, value in run[1].metrics.items():
    if name in ('eval/loss', 'eval/rewards/mean'):
      assert result.metrics[name] == pytest.approx(value, rel=0.02), name


def test_what_a_reward_model_cannot_do(run, folder, tmp_path):
  _, result = run
  uri = str(result.params)
  page = _page(folder)
  bad = copy.deepcopy(page)
  bad['samples'] = dict(every=4, num_prompts=1, num_samples=1, max_new_tokens=4)
  with pytest.raises(ValueError, match='reward model has no samples'):
    settings.of(bad)
  bad = tiny.page(folder) | dict(normalise=page['normalise'])
  with pytest.raises(ValueError, match=r"normalise is of reward models.*'dpo'"):
    settings.of(bad)
  bad = copy.deepcopy(page)
  bad['normalise']['num_samples'] = 0
  with pytest.raises(ValueError, match=r'normalise\.num_samples is 0'):
    settings.of(bad)
  dpo = tiny.page(folder)
  dpo['model']['uri'] = uri
  with pytest.raises(ValueError, match='is a reward model'):
    train.train(tmp_path / 'a', dpo)
  values = sampling_settings.check(
    seed=0,
    model=dict(uri=uri),
    max_new_tokens=4,
    temperature=1.0,
    top_k=None,
    top_p=None,
    batch_size=1,
  )
  with pytest.raises(ValueError, match='is a reward model'):
    sample.load(values, tokenizers.load(uri), [[1, 2]])
  chips = jax.devices()[:1]
  with pytest.raises(ValueError, match='is a reward model'):
    plan.make(dpo, weights.read_config(uri), chips)
  made = plan.make(page, forests.CONFIG, chips)
  trunk = models.num_params(forests.CONFIG)
  assert made.parameters == trunk + forests.CONFIG.d_model
