"""Rounds of pairs and training: what each reads, and a stopped run's rerun."""

import json
import pathlib

import pytest

from dpo_jax import iterative, pairs, train
from tests import tiny

REWARD = dict(name='function', path='tests.tiny_rewards:characters')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('iterative')
  tiny.write(folder)
  return folder


def _page(folder, **changes):
  training = tiny.page(folder)
  for name in ('train_data', 'eval_data'):
    del training[name]
  training |= dict(
    steps=2,
    log_every=1,
    eval_every=2,
    data=dict(
      kind='pairs', max_length=48, max_prompt_length=24, held_out_fraction=0.4
    ),
  )
  training['checkpoints'] = dict(every=2, keep=1)
  del training['model']['uri']
  prompts = dict(
    source='jsonl',
    path=str(folder / 'train.jsonl'),
    kind='sft',
    max_length=48,
    max_prompt_length=24,
  )
  page = dict(
    model=str(folder / 'model'),
    rounds=2,
    reference='start',
    pairs=dict(
      seed=0,
      model=dict(tokenizer=None, dtype='float32'),
      data=prompts,
      num_prompts=30,
      num_completions=4,
      max_new_tokens=8,
      temperature=1.0,
      top_k=None,
      top_p=None,
      batch_size=30,
      reward=REWARD,
    ),
    training=training,
  )
  return page | changes


def _files(folder) -> dict[str, bytes]:
  return {
    str(path.relative_to(folder)): path.read_bytes()
    for path in sorted(pathlib.Path(folder).rglob('*'))
    if path.suffix in ('.safetensors', '.jsonl') and 'metrics' not in path.name
  }


@pytest.fixture(scope='module')
def whole(folder, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('whole') / 'run'
  return iterative.run(workdir, _page(folder)), workdir


@pytest.mark.long
def test_each_round_samples_the_last_rounds_policy(folder, whole):
  result, workdir = whole
  assert result.params == workdir / 'round_2' / 'train' / 'params'
  first, second = (
    json.loads((workdir / f'round_{n}' / part / 'config.json').read_text())
    for n, part in ((2, 'pairs'), (2, 'train'))
  )
  last = str(workdir / 'round_1' / 'train' / 'params')
  assert first['model']['uri'] == second['model']['uri'] == last
  assert second['model']['reference'] == str(folder / 'model')
  prompts = [
    [
      json.loads(line)['prompt']
      for line in (workdir / f'round_{n}/pairs/pairs.jsonl').open()
    ]
    for n in (1, 2)
  ]
  rows = tiny.rows(1, 60)
  assert prompts[0] == [row['prompt'] for row in rows[:30]]
  assert prompts[1] == [row['prompt'] for row in rows[30:]]


def test_the_reference_may_be_the_last_rounds_policy(folder, tmp_path):
  rounds = list(iterative.rounds_of(tmp_path, _page(folder, reference='last')))
  assert [x.training['model']['reference'] for x in rounds] == [None, None]
  assert all(x.training['check_start'] for x in rounds)
  fixed = list(iterative.rounds_of(tmp_path, _page(folder)))
  assert [x.training['check_start'] for x in fixed] == [True, False]


@pytest.mark.long
@pytest.mark.parametrize('stop', ['pairs', 'train'])
def test_a_stopped_run_goes_on(folder, whole, tmp_path, monkeypatch, stop):
  """It stops between two rounds, or between pairs and training of one."""
  module, name = (pairs, 'make') if stop == 'pairs' else (train, 'train')
  own, calls = getattr(module, name), []

  def interrupted(*args):
    calls.append(args)
    if len(calls) == 2:
      raise KeyboardInterrupt
    return own(*args)

  with monkeypatch.context() as patched:
    patched.setattr(module, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
      iterative.run(tmp_path / 'run', _page(folder))
  iterative.run(tmp_path / 'run', _page(folder))
  there, here = _files(whole[1]), _files(tmp_path / 'run')
  assert there.keys() == here.keys()
  # Paths of the rounds differ, and are in the pairs' and runs' configs alone.
  assert there == here


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (dict(rounds=0), 'rounds is 0; expected 1 or more'),
    (dict(reference='first'), "Unknown reference 'first'"),
    (dict(model=None), 'Which model'),
    (dict(rounds=4), 'take 120, but the data has'),
    (dict(round=3), "Unknown option of the config 'round'"),
  ],
)
def test_mistakes_of_a_page(folder, tmp_path, changes, message):
  with pytest.raises(ValueError, match=message):
    iterative.run(tmp_path / 'run', _page(folder, **changes))
  assert not (tmp_path / 'run').exists()


def test_what_each_round_sets_is_no_option(folder, tmp_path):
  page = _page(folder)
  page['training']['data']['path'] = 'pairs.jsonl'
  with pytest.raises(ValueError, match=r'training.data.path .* leave it out'):
    iterative.run(tmp_path / 'run', page)
