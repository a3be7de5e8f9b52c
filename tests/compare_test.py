"""Comparisons of real runs: their numbers, their page, and what is refused."""

import html.parser
import json
import shutil

import numpy as np
import pytest

from dpo_jax import compare, train
from dpo_jax.evals import samples
from tests import tiny

# They train.
pytestmark = pytest.mark.long
REWARD = dict(name='function', path='tests.tiny_rewards:characters')


def _page(folder, beta):
  page = tiny.page(folder)
  page['method'] |= dict(beta=beta)
  page['samples'] = dict(
    every=6,
    num_prompts=4,
    num_samples=3,
    max_new_tokens=6,
    reward=REWARD,
  )
  return page


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """Two runs of different beta, and their folder."""
  folder = tmp_path_factory.mktemp('compare')
  tiny.write(folder)
  paths = []
  for beta in (0.05, 0.5):
    paths.append(str(folder / 'runs' / f'beta{beta}'))
    train.train(paths[-1], _page(folder, beta))
  return folder, paths


class _Reader(html.parser.HTMLParser):
  """The texts of a page, and what it would load."""

  def __init__(self):
    super().__init__()
    self.texts, self.sources = [], []

  def handle_data(self, data):
    self.texts.append(data)

  def handle_starttag(self, tag, attrs):
    found = dict(attrs)
    self.sources += [found[x] for x in ('src', 'href') if x in found]
    assert tag != 'script'


def test_a_comparison_of_two_runs(runs, tmp_path):
  _, paths = runs
  found = compare.compare(paths, tmp_path / 'out')
  assert found['runs'] == ['beta0.05', 'beta0.5']
  written = (tmp_path / 'out' / 'comparison.json').read_text()
  assert json.loads(json.dumps(found)) == json.loads(written)
  for name, path in zip(found['runs'], paths):
    points = found['points'][name]
    assert [p['step'] for p in points] == [0, 6, 12]
    rows = samples.read(samples.path_of(path, 12))
    for key, field in (('kl', 'kl'), ('reward', 'function')):
      mean = np.mean([row[field] for row in rows])
      assert points[-1][key] == pytest.approx(mean, rel=1e-6)
      assert points[-1][f'{key}_low'] <= mean <= points[-1][f'{key}_high']
  assert len(found['matched']) == 4
  reader = _Reader()
  reader.feed((tmp_path / 'out' / 'comparison.html').read_text())
  assert len(reader.sources) == 2
  assert all(x.startswith('data:image/png;base64,') for x in reader.sources)
  text = ' '.join(reader.texts)
  # The only option that differs.
  assert 'method.beta 0.05 0.5' in text and 'optimizer.name' not in text
  assert 'All have method.name "dpo", method.loss "dpo", model.uri' in text
  stars = sum(sum(m['from_start']) for m in found['matched'])
  assert stars and text.count(']*') == stars
  answer = samples.read(samples.path_of(paths[0], 12))[0]['text'].strip()
  assert answer in text
  for name in ('frontier', 'curves'):
    assert (tmp_path / 'out' / f'{name}.png').stat().st_size > 10_000


def test_a_run_that_goes_on_is_compared_too(runs, tmp_path):
  """Killed before its end: no params, and no samples of its last step."""
  _, paths = runs
  copy = tmp_path / 'copy'
  shutil.copytree(paths[1], copy)
  shutil.rmtree(copy / 'params')
  (copy / 'samples' / '000012.jsonl').unlink()
  found = compare.compare([paths[0], str(copy)], tmp_path / 'out')
  assert [p['step'] for p in found['points']['copy']] == [0, 6]
  assert 'not ended' in (tmp_path / 'out' / 'comparison.html').read_text()


def test_runs_without_samples_have_no_frontier(runs, tmp_path):
  _, paths = runs
  shutil.copytree(paths[1], tmp_path / 'run')
  shutil.rmtree(tmp_path / 'run' / 'samples')
  config = json.loads((tmp_path / 'run' / 'config.json').read_text())
  config['samples'] = None
  (tmp_path / 'run' / 'config.json').write_text(json.dumps(config))
  found = compare.compare([paths[0], str(tmp_path / 'run')], tmp_path / 'out')
  assert 'points' not in found and 'matched' not in found
  assert (tmp_path / 'out' / 'curves.png').exists()


def test_samples_of_another_policy_have_no_frontier(runs, tmp_path):
  """Drawn at another temperature, or scored by another function."""
  _, paths = runs
  for name, change in (
    ('cold', lambda row, config: row.update(temperature=0.5)),
    ('other', lambda row, config: config['samples']['reward'].update(path='x')),
  ):
    copy = tmp_path / name
    shutil.copytree(paths[1], copy)
    config = json.loads((copy / 'config.json').read_text())
    for file in (copy / 'samples').iterdir():
      rows = samples.read(file)
      for row in rows:
        change(row, config)
      samples.write_jsonl(file, rows)
    (copy / 'config.json').write_text(json.dumps(config))
    found = compare.compare([paths[0], str(copy)], tmp_path / f'{name}_out')
    assert 'points' not in found


def test_what_cannot_be_compared(runs, tmp_path):
  folder, paths = runs
  other = tmp_path / 'other'
  shutil.copytree(paths[1], other)
  for file in (other / 'samples').iterdir():
    rows = [
      row | dict(prompt='x' + row['prompt']) for row in samples.read(file)
    ]
    samples.write_jsonl(file, rows)
  for given, message in (
    ([paths[0]], 'two or more runs to compare; given: 1'),
    ([paths[0], paths[0]], 'is given twice'),
    ([paths[0], str(folder / 'model')], "is not a training run's directory"),
    ([paths[0], str(other)], 'other has samples of other prompts than beta'),
  ):
    with pytest.raises(ValueError, match=message):
      compare.compare(given, tmp_path / 'out')
  assert not (tmp_path / 'out').exists()
