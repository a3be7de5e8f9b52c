"""Pages: all build, are fully read, and the paper's run on rows like theirs."""

import ast
import gzip
import json
import math
import re

import jax
import numpy as np
import pytest

from dpo_jax import (
  data,
  iterative,
  judge,
  online_settings,
  options,
  overrides,
  pages,
  pairs,
  registry,
  sample,
  settings,
  train,
)
from dpo_jax.data import sources, token_rules
from dpo_jax.training import curves, optimizers
from tests import tiny

PAGES = sorted(pages.shipped())
VARIANTS = {'objectives': ['dpo', 'kto'], 'sample': [], 'judge': []}
OTHER_CHECKS = {
  'sample': sample.check,
  'imdb_pairs': pairs.check,
  'iterative_dpo': iterative.check,
  'judge': judge.check,
}
ENTRIES = {
  'sample': 'sample',
  'imdb_pairs': 'pairs',
  'iterative_dpo': 'iterative',
  'judge': 'judge',
}
TOPS = {
  'sample': sample.OPTIONS,
  'imdb_pairs': pairs.OPTIONS,
  'iterative_dpo': iterative.OPTIONS,
  'judge': judge.OPTIONS,
}
# What a page asks its user for.
ASKED = {'model.uri': 'm.gguf', 'data.path': 'd.jsonl'}
ALL_ASKED = {
  **dict.fromkeys(('dpo', 'kto', 'reward_model', 'sft'), ASKED),
  **dict.fromkeys(('ppo', 'online_dpo'), ASKED | {'reward.model': 'rm'}),
  'iterative_dpo': {'model': 'm.gguf'},
  'judge': {
    'a': 'm.gguf',
    'b': 'data',
    'data.path': 'd.jsonl',
    'data.kind': 'pairs',
  },
}


def _page(name, variant='', **changes):
  """A page's config, with values set as on the command line."""
  page = pages.load(f'{name}:{variant}' if variant else name).config
  texts = {k: v if isinstance(v, str) else repr(v) for k, v in changes.items()}
  config, _ = overrides.apply(page, texts, TOPS.get(name, options.TRAINING))
  return config


def _check(config):
  return (online_settings if 'rollouts' in config else settings).of(config)


@pytest.mark.parametrize(
  ('name', 'variant'),
  [(n, v) for n in PAGES for v in ['', *VARIANTS.get(n, ['tiny'])]],
)
def test_pages_are_whole_and_fully_read(name, variant):
  asked = dict(ALL_ASKED.get(name, {}))
  if variant:
    asked.pop('reward.model', None)  # It is judged by VADER.
  config = _page(name, variant, **asked)
  if name in OTHER_CHECKS:
    registry.bind(OTHER_CHECKS[name], config, 'the config')()
    sections = [config['data']] if 'data' in config else []
  else:
    run = _check(config)
    sections = [run.train_data, run.eval_data]
    assert run.steps == config['steps']
    assert run.steps == 2 or variant != 'tiny'
  for section in sections:
    make = sources.SOURCES[section['source']]
    known = {*registry.options_of(make), *data.OF_KINDS, *data.OF_ALL}
    known |= registry.options_of(token_rules.resolve).keys()
    assert section.keys() <= known | {'source', 'max_drop_fraction'}
    needed = registry.options_of(make).items()
    needed = {n for n, p in needed if p.default is p.empty}
    assert needed <= section.keys()


@pytest.mark.parametrize('name', [n for n in PAGES if n not in VARIANTS])
def test_unknown_variants_are_named(name):
  with pytest.raises(ValueError, match=r"'tinny'; known: 'tiny'"):
    _page(name, 'tinny')


@pytest.mark.parametrize('name', PAGES)
def test_pages_say_how_they_are_run(name):
  text = ast.get_docstring(ast.parse(pages.find(name).read_text()))
  entry = ENTRIES.get(name, 'train')
  assert f'python -m dpo_jax.{entry} --config configs/{name}.py' in text
  if name.split('_')[0] in ('imdb', 'hh', 'tldr'):
    assert 'https://arxiv.org/abs/2305.18290' in text
    assert 'paper' in text
    assert 'estimated' in text or name == 'imdb_pairs'


def test_the_papers_values():
  """App. B and section 6 of arXiv:2305.18290."""
  for name, beta in (('hh_dpo', 0.1), ('tldr_dpo', 0.5), ('imdb_dpo', 0.1)):
    config = _page(name)
    assert config['method']['beta'] == beta
    assert config['train_batches']['batch_size'] == 64
    assert config['optimizer'] == {'name': 'rmsprop'}
    assert config['schedule'] == dict(
      name='constant', peak=1e-6, warmup_steps=150
    )
    start = config['model']['uri'].split('/')[1]
    assert start == name.replace('_dpo', '_sft')
  made = _page('imdb_pairs')
  assert (made['num_prompts'], made['num_completions']) == (25_000, 4)
  made = made['data']
  assert (made['min_tokens'], made['max_tokens']) == (2, 8)


def _leaves(config, prefix=''):
  for name, value in config.items():
    if isinstance(value, dict):
      yield from _leaves(value, f'{prefix}{name}.')
    else:
      yield prefix + name, value


@pytest.mark.parametrize('name', PAGES)
def test_all_values_can_be_set_on_the_command_line(name):
  config = _page(name)
  assert _page(name, **dict(_leaves(config))) == config


@pytest.mark.parametrize('name', PAGES)
def test_pages_stand_alone(name):
  """A copy of one works from anywhere: none imports another."""
  assert 'configs' not in re.findall(
    r'^(?:import|from) (\w+)', pages.find(name).read_text(), re.MULTILINE
  )


# What a config may leave open.


def test_questions_name_the_flag():
  with pytest.raises(ValueError, match=r'Set --config\.model\.uri'):
    _check(_page('dpo', **{'data.path': 'd.jsonl'}))
  with pytest.raises(ValueError, match=r'Set --config\.data\.path'):
    _check(_page('sft', **{'model.uri': 'm'}))


@pytest.mark.parametrize(
  ('changes', 'train_data', 'eval_data'),
  [
    ({}, dict(split='train'), dict(split='test')),
    (
      {'data.held_out_fraction': 0.3},
      dict(split='train', held_out_fraction=0.3),
      dict(split='test', held_out_fraction=0.3),
    ),
    ({'eval_data.path': 'e.jsonl'}, {}, dict(path='e.jsonl')),
    (
      {'train_data.split': 'test'},
      dict(split='test'),
      dict(split='train'),
    ),
    (
      {'data.columns.prompt': 'question'},
      dict(split='train', columns=dict(prompt='question')),
      dict(split='test', columns=dict(prompt='question')),
    ),
  ],
)
def test_one_file_is_split_and_two_are_not(changes, train_data, eval_data):
  run = _check(_page('dpo', **ASKED, **changes))
  common = dict(
    source='jsonl',
    path='d.jsonl',
    kind='pairs',
    max_length=512,
    max_prompt_length=256,
    truncation='keep_end',
    bos='auto',
    chat=False,
    control_tokens='text',
    max_drop_fraction=0.01,
  )
  assert run.train_data == common | train_data
  assert run.eval_data == common | eval_data


def test_sections_that_do_not_go_together():
  both = {'eval_data.path': 'e.jsonl', 'data.held_out_fraction': 0.1}
  with pytest.raises(ValueError, match=r"held_out_fraction .*'e\.jsonl'"):
    _check(_page('dpo', **ASKED, **both))
  config = _page('quickstart')
  del config['eval_data']
  with pytest.raises(ValueError, match='neither eval_data nor data'):
    _check(config)


@pytest.mark.parametrize(
  ('epochs', 'examples', 'steps'),
  [(None, 64, 1), (None, 200, 3), (2.0, 100, 3), (0.5, 640, 5), (0.1, 641, 1)],
)
def test_epochs_are_whole_batches(epochs, examples, steps):
  config = _page('dpo', **ASKED, epochs=epochs)
  config['schedule']['warmup_steps'] = 0
  run = _check(config)
  assert run.steps is None
  assert settings.num_steps(run, examples) == steps
  schedule = optimizers.build_schedule(run.schedule, steps)
  assert float(schedule(0)) == pytest.approx(1e-6)
  optimizer = optimizers.build(run.optimizer, schedule)
  assert optimizer.init({'w': jax.numpy.zeros(2)})
  assert settings.num_steps(run._replace(epochs=None, steps=steps), 1) == steps


def test_bad_durations():
  with pytest.raises(ValueError, match=r'steps is 3 and epochs is 0\.5'):
    _check(_page('dpo', **ASKED, steps=3, epochs=0.5))
  with pytest.raises(ValueError, match='epochs is -1'):
    _check(_page('dpo', **ASKED, epochs=-1.0))
  run = _check(_page('dpo', **ASKED))
  with pytest.raises(ValueError, match=r'1 epochs of 63 .* batch of 64'):
    settings.num_steps(run, 63)
  with pytest.raises(ValueError, match=r'warmup_steps is 2, .* 1 steps'):
    optimizers.build_schedule(run.schedule, settings.num_steps(run, 64))


# Whole runs, on rows of the real schema.


@pytest.fixture(scope='module')
def world(tmp_path_factory):
  """A tiny model in model/, and data as the hub and TFDS have it."""
  folder = tmp_path_factory.mktemp('world')
  tiny.write(folder)
  rows = _rows()
  _write_hh(folder / 'hh', rows)
  _write_tldr(folder / 'tldr', rows)
  _write_imdb(folder / 'tfds', rows)
  return folder


def _rows():
  """Pairs of 160 different prompts; the last 40 are held out."""
  rows = tiny.rows(3, 160)
  return [
    row | {'prompt': f'{i}: {row["prompt"]}'} for i, row in enumerate(rows)
  ]


def _write_hh(folder, rows):
  for i, subset in enumerate(sources.dialogues.HH_SUBSETS):
    (folder / subset).mkdir(parents=True)
    for split, part in (('train', rows[i:120:4]), ('test', rows[120 + i :: 4])):
      with gzip.open(folder / subset / f'{split}.jsonl.gz', 'wt') as file:
        for row in part:
          prompt = f'\n\nHuman: {row["prompt"]}?\n\nAssistant:'
          texts = {k: prompt + row[k] for k in ('chosen', 'rejected')}
          file.write(json.dumps(texts) + '\n')


def _write_tldr(folder, rows):
  import pyarrow
  import pyarrow.parquet

  for name, splits in (
    ('sft', ('train', 'valid')),
    ('comparisons', ('train', 'test')),
  ):
    (folder / name / 'data').mkdir(parents=True)
    for split, part in zip(splits, (rows[:120], rows[120:])):
      posts = [f'SUBREDDIT: r/x\nPOST: {row["prompt"]}' for row in part]
      columns = {'prompt': [f'{post}\nTL;DR:' for post in posts]}
      if name == 'sft':
        columns['label'] = [row['chosen'].strip() for row in part]
      else:
        columns = {'prompt': posts}
        for side in ('chosen', 'rejected'):
          columns[side] = [f'TL;DR:{row[side]}' for row in part]
      path = folder / name / 'data' / f'{split}-00000-of-00001.parquet'
      pyarrow.parquet.write_table(pyarrow.table(columns), path)


def _write_imdb(folder, rows):
  import tensorflow_datasets as tfds

  with tfds.core.registered.skip_registration():

    class ImdbReviews(tfds.core.GeneratorBasedBuilder):
      VERSION = tfds.core.Version('1.0.0')
      BUILDER_CONFIGS = (tfds.core.BuilderConfig(name='plain_text'),)

      def _info(self):
        label = tfds.features.ClassLabel(names=['neg', 'pos'])
        features = {'label': label, 'text': tfds.features.Text()}
        return tfds.core.DatasetInfo(
          builder=self, features=tfds.features.FeaturesDict(features)
        )

      def _split_generators(self, manager):
        del manager
        return {
          name: self._generate_examples(part)
          for name, part in (('train', rows[:120]), ('test', rows[120:]))
        }

      def _generate_examples(self, part):
        for i, row in enumerate(part):
          text = row['prompt'] + row[('chosen', 'rejected')[i % 2]]
          yield i, {'text': text, 'label': i % 2}

  builder = ImdbReviews(
    config='plain_text', data_dir=folder, file_format='array_record'
  )
  builder.download_and_prepare()


@pytest.fixture
def run_page(world, monkeypatch):
  """run_page(name, uri, **changes) -> rows of metrics.jsonl."""
  monkeypatch.setenv('DPO_JAX_CACHE', str(world / 'cache'))
  # Pictures take longer than these runs; reports have tests of their own.
  monkeypatch.setattr(curves, 'draw', lambda *args, **kwargs: None)

  def run(name, uri, **changes):
    config = _page(name, 'tiny', **{'model.uri': str(uri)}, **changes)
    for section in ('data', 'train_data', 'eval_data'):
      if 'max_length' in config.get(section, {}):
        config[section].update(max_length=48, max_prompt_length=32)
    if 'mesh' not in config:
      return pairs.make(world / name, config)
    config['mesh'] = dict(devices=1)
    config['model']['attention'] = 'dense'
    config['log'] = dict(tensorboard=False)
    if name != 'imdb_dpo':
      config['samples'] = None
    train.train(world / name, config)
    lines = (world / name / 'metrics.jsonl').read_text().splitlines()
    return [json.loads(line) for line in lines]

  return run


def _check_rows(rows, *, loss):
  """Two steps, whose first held-out loss is `loss` where that is known."""
  held_out = [row for row in rows if 'eval/loss' in row]
  assert [row['step'] for row in held_out] == [0, 2]
  assert np.isfinite([row['eval/loss'] for row in held_out]).all()
  if loss is not None:
    assert held_out[0]['eval/loss'] == pytest.approx(loss, abs=1e-5)
  assert held_out[0]['eval/loss'] != held_out[1]['eval/loss']
  assert held_out[0]['eval/examples'] == 8


@pytest.mark.slow
@pytest.mark.parametrize(
  ('name', 'folders'),
  [('hh', ('hh', 'hh')), ('tldr', ('tldr/sft', 'tldr/comparisons'))],
)
def test_dialogues_and_summaries(name, folders, world, run_page):
  sft, dpo = (str(world / folder) for folder in folders)
  rows = run_page(f'{name}_sft', world / 'model', **{'data.path': sft})
  _check_rows(rows, loss=None)
  tuned = world / f'{name}_sft' / 'params'
  rows = run_page(f'{name}_dpo', tuned, **{'data.path': dpo})
  _check_rows(rows, loss=math.log(2))


@pytest.mark.long
@pytest.mark.slow
def test_reviews(world, run_page):
  where = {'data.data_dir': str(world / 'tfds')}
  _check_rows(run_page('imdb_sft', world / 'model', **where), loss=None)
  tuned = world / 'imdb_sft' / 'params'
  made = run_page('imdb_pairs', tuned, **where)
  rows = [json.loads(line) for line in made.read_text().splitlines()]
  assert len(rows) == 8
  reviews = [row['prompt'] + row[side] for row in _rows() for side in row]
  for row in rows:
    assert len(row['completions']) == len(row['scores']) == 4
    assert any(text.startswith(row['prompt']) for text in reviews)
  # VADER calls hardly any of these tokens anything: scores that do not tie.
  for i, row in enumerate(rows):
    row['scores'] = [0.1 * i, 0.2, 0.9, -0.5]
  made.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  rows = run_page('imdb_dpo', tuned, **{'data.path': str(made)})
  _check_rows(rows, loss=math.log(2))
  last = [row for row in rows if 'samples/kl' in row][-1]
  assert last['step'] == 2 and 'samples/vader' in last
