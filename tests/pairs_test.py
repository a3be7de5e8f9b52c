"""Preference data from a model: resumed bit for bit, read as it was scored."""

import json
import pathlib
import shutil
from unittest import mock

import jax
import pytest

from dpo_jax import data, pairs, registry, rewards, tokenizers
from dpo_jax.rewards import sentiment
from dpo_jax.weights import load, save
from tests import tiny


def _letters(text):
  """Tells random texts apart, of which VADER knows few."""
  return float(sum(map(ord, text)) % 97)


@pytest.fixture(scope='module')
def config(tmp_path_factory):
  """Three parts of eight prompts or fewer, of three completions each."""
  folder = tmp_path_factory.mktemp('pairs')
  tiny.write(folder, num_train=20)
  tiny.write_numbered(folder / 'train.jsonl', 20)

  def build(*, sees='completion'):
    seen = registry.lookup(sentiment.SEES, sees, 'sees')
    return lambda prompts, texts: list(map(_letters, seen(prompts, texts)))

  with mock.patch.dict(rewards.REWARDS, letters=build):
    yield dict(
      seed=3,
      model=dict(uri=str(folder / 'model'), tokenizer=None, dtype='float32'),
      data=dict(
        source='jsonl',
        path=str(folder / 'train.jsonl'),
        kind='sft',
        max_length=48,
        max_prompt_length=24,
      ),
      num_prompts=18,
      num_completions=3,
      max_new_tokens=4,
      temperature=1.0,
      top_k=None,
      top_p=None,
      batch_size=1,
      reward='letters',
    )


@pytest.fixture(scope='module')
def made(config, tmp_path_factory):
  return pairs.make(tmp_path_factory.mktemp('out') / 'run', config)


def _rows(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_prompt_has_its_completions_and_their_scores(config, made):
  rows = _rows(made)
  assert [row['prompt'] for row in rows] == [
    f'{i} {row["prompt"]}' for i, row in enumerate(tiny.rows(1, 18))
  ]
  for row in rows:
    assert len(row['completions']) == 3
    assert row['scores'] == [_letters(text) for text in row['completions']]
  texts = {text for row in rows for text in row['completions']}
  assert len(texts) > 10
  assert f'18 prompts, {_pairs(rows)} pairs' in pairs.summary(made)


def test_a_mesh_makes_the_same(config, made, tmp_path):
  changes = dict(num_prompts=2, mesh=dict(devices=2, fsdp=2))
  on_mesh = pairs.make(tmp_path / 'run', config | changes)
  assert _rows(on_mesh) == _rows(made)[:2]


def _pairs(rows):
  return sum(
    a > b for row in rows for a in row['scores'] for b in row['scores']
  )


def test_they_are_read_as_pairs(config, made):
  tokenizer = tokenizers.load(config['model']['uri'])
  section = dict(source='jsonl', path=str(made), kind='pairs')
  lengths = dict(max_length=48, max_prompt_length=24, max_drop_fraction=1.0)
  records = data.load(section | lengths, tokenizer=tokenizer)
  assert records.example_counts.sum() == _pairs(_rows(made))
  for i in range(len(records)):
    texts = [tokenizer.decode(ids[:-1]) for ids in records.completions(i)]
    for better, worse in records.examples(i):
      assert _letters(texts[better]) > _letters(texts[worse])


@pytest.mark.parametrize('done', [1, 8, 9, 16, 18])
def test_what_was_stopped_goes_on_to_the_same_file(
  done, config, made, tmp_path
):
  """Stopped after so many lines, in the midst of the next."""
  run = tmp_path / 'run'
  pairs.make(run, config)
  whole = made.read_bytes()
  lines = whole.splitlines(keepends=True)
  part = run / 'pairs.part'
  (run / 'pairs.jsonl').unlink()
  part.write_bytes(b''.join(lines[:done]) + b''.join(lines[done:])[:9])
  assert pairs.make(run, config).read_bytes() == whole
  assert not part.exists()


def test_what_goes_on_has_the_same_inputs(config, made, tmp_path):
  shutil.copytree(made.parent, tmp_path / 'run')
  part = tmp_path / 'run' / 'pairs.part'
  (tmp_path / 'run' / 'pairs.jsonl').rename(part)
  lines = part.read_bytes().splitlines(keepends=True)[:8]
  part.write_bytes(b''.join(lines))
  data, model = pathlib.Path(config['data']['path']), config['model']['uri']
  weights = pathlib.Path(model) / 'model.safetensors'
  for file, message in (
    (data, rf'data \({data}\): SHA-256'),
    (weights, rf'model\.uri \({model}\): SHA-256'),
  ):
    before = file.read_bytes()
    try:
      if file is data:
        data.write_bytes(before.replace(b'0 ', b'9 '))
      else:
        found, params = load(model)
        save(tmp_path / 'm', found, jax.tree.map(lambda x: 2 * x, params))
        shutil.copy(tmp_path / 'm' / 'model.safetensors', weights)
      with pytest.raises(ValueError, match=message):
        pairs.make(tmp_path / 'run', config)
    finally:
      file.write_bytes(before)
    assert part.read_bytes() == b''.join(lines)
  same = pairs.make(tmp_path / 'run', config)
  assert same.read_bytes() == made.read_bytes()


def test_a_directory_takes_one_config(config, made):
  with pytest.raises(ValueError, match='seed: 3 -> 4'):
    pairs.make(made.parent, config | dict(seed=4))
  before = made.stat().st_mtime_ns
  assert pairs.make(made.parent, config) == made
  assert made.stat().st_mtime_ns == before


def test_a_reward_can_see_the_prompt(config, tmp_path):
  reward = dict(name='letters', sees='both')
  both = pairs.make(tmp_path / 'run', config | dict(reward=reward))
  for row in _rows(both):
    assert row['scores'] == [
      _letters(row['prompt'] + text) for text in row['completions']
    ]


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (dict(num_prompts=21), 'num_prompts is 21, but the data has 20'),
    (dict(num_completions=1), 'num_completions is 1; expected 2'),
    (dict(max_new_tokens=60), 'the model has 64 positions'),
    (dict(reward=dict(name='letters', sees='bth')), "Did you mean 'both'"),
    (dict(reward='vadr'), "Did you mean 'vader'"),
    (dict(temprature=1.0), "Did you mean 'temperature'"),
  ],
)
def test_what_cannot_be(changes, message, config, tmp_path):
  with pytest.raises(ValueError, match=message):
    pairs.make(tmp_path / 'run', config | changes)
