"""docs/: tables, snippets and commands say what the code has."""

import importlib.util
import itertools
import json
import math
import pathlib
import re

import jax.numpy as jnp
import pytest

from dpo_jax import (
  assets,
  data,
  data_sections,
  judges,
  losses,
  registry,
  rewards,
  types,
)
from dpo_jax.chat import errors, rendering
from dpo_jax.data import records, sources
from dpo_jax.evals import samples, win_rates
from dpo_jax.methods import dpo, reward_model
from dpo_jax.models import presets
from dpo_jax.weights import families
from tests import page as page_lib
from tests import templates

DOCS = pathlib.Path(__file__).parents[1] / 'docs'
NAMES = sorted(path.stem for path in DOCS.glob('*.md'))
TEXTS = {name: (DOCS / f'{name}.md').read_text('utf-8') for name in NAMES}
spans = page_lib.spans


def _tables(name):
  """{first column's name: rows as {column: cell}}."""
  out = {}
  lines = [line.strip() for line in TEXTS[name].splitlines()]
  for is_table, group in itertools.groupby(lines, lambda x: x.startswith('|')):
    if is_table:
      head, _, *rows = [
        [cell.strip() for cell in re.split(r'(?<!\\)\|', line)[1:-1]]
        for line in group
      ]
      assert all(len(row) == len(head) for row in rows), head
      assert head[0] not in out, head[0]
      out[head[0]] = [dict(zip(head, row)) for row in rows]
  return out


MODELS, DATA, CURVES, REWARDS, JUDGES = map(
  _tables, ('models', 'data', 'curves', 'rewards', 'judges')
)


def _yes(condition):
  return 'yes' if condition else 'no'


def test_every_family_has_its_row():
  shown = {spans(row['family'])[0]: row for row in MODELS['family']}
  assert list(shown) == list(families.FAMILIES)
  for name, family in families.FAMILIES.items():
    row = shown[name]
    assert row['folder'] == _yes(family.hf)
    assert row['GGUF'] == _yes(family.gguf)
    assert row['exported'] == _yes(family.hf and family.hf.extra)
    for size in spans(row['sizes']):
      written, _ = families.of_config(presets.PRESETS[size])
      assert written.name == name
  sizes = [x for row in MODELS['family'] for x in spans(row['sizes'])]
  assert sorted(sizes) == sorted(presets.PRESETS)


def test_forms_of_uris_are_read():
  """What the resolver says it takes is in the table."""
  forms = ' '.join(spans(row['form'])[0] for row in MODELS['form'])
  with pytest.raises(ValueError, match='Known: ') as error:
    assets.resolve('ftp://x/y')
  known = str(error.value).partition('Known: ')[2].rstrip('.').split(', ')
  assert sorted(re.findall(r'(\w+)://', forms)) == sorted(known)


def test_members_that_are_not_listed_need_their_hash():
  with pytest.raises(ValueError, match='append #sha256=<hex'):
    assets.resolve('pypi://x==1/member')
  (row,) = (r for r in MODELS['form'] if 'pypi://' in r['form'])
  assert 'needs `#sha256=<hex>`' in row['what it is']


def test_every_reward_loss_has_its_row():
  rows = {spans(row['reward loss'])[0]: row for row in REWARDS['reward loss']}
  assert list(rows) == list(losses.REWARD_LOSSES)
  for name, row in rows.items():
    options = registry.options_of(losses.REWARD_LOSSES[name])
    assert spans(row['options']) == list(options)
    assert spans(row['kind'])[0] == reward_model.FORMS[name].kinds[0]


def test_every_source_has_its_row_and_options():
  shown = {spans(row['source'])[0]: row for row in DATA['source']}
  assert sorted(shown) == sorted(sources.SOURCES)
  for name, row in shown.items():
    options = registry.options_of(sources.SOURCES[name])
    assert spans(row['options']) == list(options), name
  for name in ('jsonl', 'parquet'):
    for suffix in spans(shown[name]['rows']):
      with pytest.raises(FileNotFoundError):
        sources.SOURCES[name](path=f'absent{suffix}')
  with pytest.raises(ValueError, match='does not end with'):
    sources.SOURCES['jsonl'](path=str(DOCS / 'data.md'))


@pytest.mark.parametrize('row', DATA['row'], ids=lambda row: row['kinds'])
def test_kinds_of_rows(row):
  (line,) = spans(row['row'])
  render = rendering.Render(templates.Plain())
  fit = set()
  for kind in records.KINDS:
    try:
      records.parse(json.loads(line), kind=kind, render=render)
      fit.add(kind)
    except errors.RowError:
      pass
  assert set(row['kinds'].split(', ')) == fit


def test_every_kind_is_named():
  listed = re.search(r'`kind` says[^(]*\(([^;]*);', TEXTS['data'])
  assert spans(listed[1]) == list(records.KINDS)


def test_the_mixture_that_is_shown():
  (block,) = re.findall(r'```python\n(.*?)```', TEXTS['data'], re.DOTALL)
  c = Page()
  exec(block, {'c': c})
  train, test = data_sections.train_and_held_out(
    c.data, c.train_data, c.eval_data
  )
  assert (train.pop('split'), test.pop('split')) == ('train', 'test')
  assert train == test == c.data
  assert c.data['source'] == data.MIXTURE
  for part in c.data['parts'].values():
    options = registry.options_of(sources.SOURCES[part['source']])
    assert part.keys() <= {*options, 'source', 'weight'}


class Page:
  """Takes the sections of a snippet."""


def test_every_reward_has_its_row():
  shown = {spans(row['reward'])[0]: row for row in _tables('rewards')['reward']}
  assert sorted(shown) == sorted(rewards.REWARDS)
  for name, make in rewards.REWARDS.items():
    assert spans(shown[name]['options']) == list(registry.options_of(make))
    found = re.search(r'positive from ([\d.]+)', shown[name]['score'])
    threshold = float(found[1]) if found else None
    assert rewards.POSITIVE.get(name) == threshold


def test_metrics_that_are_explained_exist():
  pair = types.PairLogps(*[jnp.zeros((1, 2))] * 2, jnp.ones((1, 2), jnp.int32))
  known = set(dpo.pair_metrics(pair, jnp.zeros((1, 2))))
  known |= {f'logps_per_token/{x}' for x in ('chosen', 'rejected')}
  known |= {'loss', 'grad_norm', 'nonfinite'}
  row = dict(prompt='', text='', ids=[], length=0, ended=False, logp=0.0)
  row |= dict(kl=0.0, log_ratio=0.0, temperature=1.0, top_k=None, top_p=None)
  known |= set(samples.statistics([row]))
  shown = {x for row in CURVES['metric'] for x in spans(row['metric'])}
  assert shown <= known
  assert set(dpo.pair_metrics(pair, jnp.zeros((1, 2)))) <= shown


@pytest.mark.parametrize('row', _tables('beta')['p'], ids=lambda r: r['p'])
def test_what_beta_asks_for(row):
  p = float(row.pop('p'))
  assert row
  for head, cell in row.items():
    beta = float(head.removeprefix('beta = '))
    assert cell == f'{math.log(p / (1 - p)) / beta:.1f}'


@pytest.mark.parametrize(
  ('config', 'place'),
  [('imdb_dpo', 'sentiment'), ('hh_dpo', 'HH'), ('tldr_dpo', 'TL;DR')],
)
def test_betas_that_were_used_are_the_pages(config, place):
  method = importlib.import_module(f'configs.{config}').get_config().method
  (row,) = (r for r in _tables('beta')['data'] if place in r['data'])
  numbers = [float(x) for x in re.findall(r'\d+\.?\d*', row['beta'])]
  assert method.beta in numbers


def test_options_of_the_export_command():
  (rows,) = _tables('export').values()
  shown = [spans(row['option'])[0] for row in rows]
  command = importlib.import_module('dpo_jax.export').__doc__
  assert sorted(shown) == sorted(set(re.findall(r'^  (--\w+)', command, re.M)))


def _anchors(text):
  heads = re.findall(r'^#+ (.*)$', text, re.MULTILINE)
  return [re.sub(r'[^\w -]', '', h).lower().replace(' ', '-') for h in heads]


@pytest.mark.parametrize('name', NAMES)
def test_links_and_commands_lead_somewhere(name):
  text = TEXTS[name]
  prose = re.sub(r'```.*?```', '', text, flags=re.DOTALL)
  for link in re.findall(r'\]\(([^)]+)\)', prose):
    path, _, anchor = link.partition('#')
    if not path.startswith('http'):
      target = (DOCS / path) if path else DOCS / f'{name}.md'
      assert target.exists(), link
      assert not anchor or anchor in _anchors(target.read_text()), link
  for module in re.findall(r'python -m (dpo_jax\.\w+)', text):
    assert importlib.util.find_spec(module)
  for config in re.findall(r'configs/(\w+)\.py', text):
    assert (DOCS.parent / 'configs' / f'{config}.py').exists()


def test_judges_and_their_options():
  shown = {spans(row['judge'])[0]: row for row in JUDGES['judge']}
  assert sorted(shown) == sorted(judges.JUDGES)
  for name, make in judges.JUDGES.items():
    assert spans(shown[name]['options']) == [*registry.options_of(make)]


def test_fields_of_a_verdict():
  vote = dict(prompt='p', a='x', b='y', verdict='a', first='a')
  found = win_rates.of_votes([vote], [1.0])
  named = [x for row in JUDGES['field'] for x in spans(row['field'])]
  assert sorted(named) == sorted(found)
