"""Sections of a config: what is held out is not trained on."""

import importlib
import json
import os

import pytest

from dpo_jax import data, data_sections, tokenizers
from tests import tiny

PATH = 'p.jsonl'
TRAIN, TEST = ({'split': split} for split in ('train', 'test'))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """p.jsonl with two rows of each prompt, a copy, and a link."""
  folder = tmp_path_factory.mktemp('sections')
  tiny.write(folder)
  rows = [
    row | {'prompt': f'{i // 2}: {row["prompt"]}'}
    for i, row in enumerate(tiny.rows(3, 80))
  ]
  for name, part in ((PATH, rows), ('train', rows[:60]), ('test', rows[60:])):
    path = folder / name
    path = path.with_suffix('.jsonl')
    path.write_text(''.join(json.dumps(row) + '\n' for row in part))
  os.symlink(folder / PATH, folder / 'link.jsonl')
  return folder


@pytest.fixture
def prompts(folder, monkeypatch):
  """prompts(train, eval, **common) -> those of each of the two sections."""
  monkeypatch.chdir(folder)
  monkeypatch.setenv('DPO_JAX_CACHE', str(folder / 'cache'))
  tokenizer = tokenizers.load(folder / 'model')

  def load(train, held_out, **common):
    common = dict(path=PATH) | common
    common |= dict(source='jsonl', max_length=48, max_prompt_length=32)
    sections = data_sections.train_and_held_out(common, train, held_out)
    found = []
    for section in sections:
      part = data.load(section, tokenizer=tokenizer)
      lines = [(folder / file).read_text().splitlines() for file in part.files]
      found.append(
        {
          json.loads(lines[file][row - 1])['prompt']
          for file, row in zip(part.file_index, part.rows)
        }
      )
    return found

  return load


@pytest.mark.parametrize(
  ('train', 'held_out', 'common'),
  [
    ({}, {}, {}),
    ({}, TEST, {}),
    (TRAIN, {}, {}),
    (TEST, {}, {}),
    ({}, TRAIN, {}),
    ({}, dict(path=f'./{PATH}'), {}),
    ({}, dict(path=[PATH]), {}),
    ({}, dict(path='link.jsonl'), {}),
    ({}, dict(path='p*.jsonl'), {}),
    (TRAIN, dict(path=(f'./{PATH}',)), {}),
    ({}, TEST, TRAIN),
    (dict(path='train.jsonl'), dict(path='test.jsonl'), {}),
    (TRAIN, TEST, dict(path=['train.jsonl', 'test.jsonl'])),
    (TRAIN, TEST | dict(path='train.jsonl'), dict(path=[PATH, 'train.jsonl'])),
    (TRAIN, TEST, dict(held_out_fraction=0.4)),
  ],
)
def test_no_prompt_is_on_both_sides(prompts, train, held_out, common):
  mine, its = prompts(train, held_out, **common)
  assert mine and its and not mine & its


@pytest.mark.parametrize(
  ('train', 'held_out', 'common'),
  [
    ({}, {}, TRAIN),
    (TEST, TEST, {}),
    ({'split': 'all'}, {}, {}),
    ({'split': 'all'}, TEST, {}),
    ({}, dict(path=PATH), dict(path=[PATH, 'train.jsonl'])),
    (TRAIN | dict(held_out_fraction=0.1), dict(held_out_fraction=0.5), {}),
  ],
)
def test_rows_on_both_sides_are_an_error(prompts, train, held_out, common):
  message = r'both read .*p\.jsonl.*(trained on|give both the same)'
  with pytest.raises(ValueError, match=message):
    prompts(train, held_out, **common)


def test_sections_without_common_are_looked_at_too():
  part = dict(source='jsonl', path=PATH)
  with pytest.raises(ValueError, match='both read'):
    data_sections.train_and_held_out(None, part, part)
  split = part | TRAIN, part | TEST
  assert data_sections.train_and_held_out(None, *split) == split


def test_parts_of_mixtures_are_kept_apart():
  own = dict(source='jsonl', path=PATH)
  parts = dict(hh=dict(source='hh', weight=1.0), own=own | dict(weight=1.0))
  mixture = dict(source='mixture', parts=parts)
  mine, its = data_sections.train_and_held_out(mixture, None, None)
  assert (mine.pop('split'), its.pop('split')) == ('train', 'test')
  assert mine == its == mixture
  parts['own']['split'] = 'train'
  with pytest.raises(ValueError, match='both read'):
    data_sections.train_and_held_out(mixture, None, None)


@pytest.mark.parametrize('name', ['hh_dpo', 'tldr_sft', 'imdb_sft'])
def test_data_sets_with_splits_of_their_own(name):
  config = importlib.import_module(f'configs.{name}').get_config().to_dict()
  mine, its = (config[f'{part}_data'] for part in ('train', 'eval'))
  found = data_sections.train_and_held_out(config['data'], mine, its)
  assert [part['split'] for part in found] == [mine['split'], its['split']]
  with pytest.raises(ValueError, match='both read'):
    data_sections.train_and_held_out(config['data'], mine, mine)
  apart = dict(subsets=['a']), dict(subsets=['b'])
  if name == 'hh_dpo':
    data_sections.train_and_held_out(config['data'] | TRAIN, *apart)


def test_a_section_may_lack_a_path():
  movies = dict(source='movie_ratings')
  mine, its = data_sections.train_and_held_out(movies, TRAIN, None)
  assert (mine['split'], its['split']) == ('train', 'test')
