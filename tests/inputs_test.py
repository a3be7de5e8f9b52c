"""A run goes on with what it began with, or says what has changed."""

import json
import pathlib
import re
import shutil

import jax
import pytest

from dpo_jax import build, settings, tokenizers, train, weights
from dpo_jax.methods import reference
from dpo_jax.training import digest, inputs, processes
from tests import builds, tiny


@pytest.fixture(scope='module')
def begun(tmp_path_factory):
  """(page, the directory of a run that was stopped after step 1 of 2)."""
  folder = tmp_path_factory.mktemp('inputs')
  tiny.write(folder, num_train=12)
  shutil.copytree(folder / 'model', folder / 'reference')
  shutil.copytree(folder / 'model', folder / 'tokenizer')
  _retrain(folder / 'reference')
  page = tiny.page(folder) | dict(steps=2, log_every=1, eval_every=1)
  page['model'] |= dict(
    reference=str(folder / 'reference'), tokenizer=str(folder / 'tokenizer')
  )
  page['checkpoints'] = dict(every=1, keep=2)
  page['check_start'] = False
  run = folder / 'run'
  train.train(run, page)
  shutil.rmtree(run / 'params')
  shutil.rmtree(run / 'checkpoints' / '2')
  return page, run


@pytest.fixture
def page(begun):
  """The page; what a test changes of its files is put back."""
  folder = begun[1].parent

  def files():
    found = (p for p in folder.rglob('*') if p.is_file())
    return {p: p.read_bytes() for p in found if 'run' not in p.parts}

  before = files()
  yield begun[0]
  for path in files().keys() - before.keys():
    path.unlink()
  for path, content in before.items():
    path.write_bytes(content)


@pytest.fixture
def run(begun, tmp_path):
  """A copy of the stopped run's directory."""
  return pathlib.Path(shutil.copytree(begun[1], tmp_path / 'run'))


def _retrain(folder):
  """Other weights of the same shapes in the same place."""
  config, params = weights.load(str(folder))
  other = jax.tree.map(lambda x: x * 1.5, params)
  weights.save(folder / 'new', config, other)
  name = 'model.safetensors'
  (folder / 'new' / name).replace(folder / name)
  shutil.rmtree(folder / 'new')


def _append(path):
  row = dict(prompt='A fourth', chosen=' is funny.', rejected=' is dull.')
  with path.open('a') as file:
    file.write(json.dumps(row) + '\n')


def _swap(path):
  """The same number of rows under the same name."""
  rows = map(json.loads, path.read_text().splitlines())
  changed = [
    {**r, 'chosen': r['rejected'], 'rejected': r['chosen']} for r in rows
  ]
  path.write_text(''.join(json.dumps(row) + '\n' for row in changed))


def _settings(folder, **values):
  path = folder / 'tokenizer_config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | values))


def _template(folder):
  _settings(folder, chat_template='{{ messages }}')


def _ends(folder):
  (folder / 'generation_config.json').write_text('{"eos_token_id": [0, 5]}')


CHANGES = {
  'rows appended': (_append, 'train.jsonl', ['train_data']),
  'held-out rows changed': (_swap, 'eval.jsonl', ['eval_data']),
  'template': (_template, 'tokenizer', ['model.tokenizer']),
  'ends': (_ends, 'tokenizer', ['model.tokenizer']),
  'start retrained': (_retrain, 'model', ['model.uri']),
  'reference retrained': (_retrain, 'reference', ['model.reference']),
}


@pytest.mark.parametrize('name', CHANGES)
def test_a_change_is_refused_by_name(name, page, run, monkeypatch):
  change, file, sections = CHANGES[name]
  folder = pathlib.Path(page['train_data']['path']).parent
  change(folder / file)
  if 'model' not in sections[0]:
    monkeypatch.delattr(build, 'load_model')  # Before they are read.
  monkeypatch.delattr(reference, 'attach')
  before = {p: p.read_bytes() for p in run.rglob('*') if p.is_file()}
  with pytest.raises(ValueError, match='The inputs differ') as error:
    train.train(run, page)
  text = str(error.value)
  found = re.findall(r'([\w.]+) \((\S+)\): SHA-256 \w{16} -> \w{16}', text)
  assert found == [(section, str(folder / file)) for section in sections]
  assert f"remove '{run / 'inputs.json'}'" in text
  after = {p: p.read_bytes() for p in run.rglob('*') if p.is_file()}
  for path in before:
    if path.name != '.lock':
      assert after[path] == before[path], path
  (folder / 'tokenizer' / 'generation_config.json').unlink(missing_ok=True)


def test_to_go_on_all_the_same(page, run):
  """Without inputs.json, as a run from before there was one."""
  kept = json.loads((run / 'inputs.json').read_text())
  (run / 'inputs.json').unlink()
  _append(pathlib.Path(page['train_data']['path']))
  train.train(run, page)
  assert (run / 'params').is_dir()
  steps = [json.loads(line) for line in (run / 'metrics.jsonl').open()]
  assert [row['step'] for row in steps if 'loss' in row] == [1, 2]
  now = json.loads((run / 'inputs.json').read_text())
  changed = {
    name
    for name, found in now['fingerprints'].items()
    if found != kept['fingerprints'][name]
  }
  assert changed == {'train_data'}


def test_what_is_kept_is_of_what_was_read(page, run):
  kept = json.loads((run / 'inputs.json').read_text())['fingerprints']
  assert list(kept) == [
    'model.tokenizer',
    'train_data',
    'eval_data',
    'model.uri',
    'model.reference',
  ]
  for name in ('uri', 'reference'):
    _, params = weights.load(page['model'][name])
    assert kept[f'model.{name}'] == {
      'source': page['model'][name],
      'sha256': digest.fingerprint(params),
    }
  assert kept['train_data']['source'] == page['train_data']['path']


def _loaded(page, path=None):
  s = settings.of(page)
  return s, builds.load(s, inputs.Inputs(path))


def test_they_are_kept_before_the_reference_is_scored(
  page, tmp_path, monkeypatch
):
  def scored(*args, **kwargs):
    assert (tmp_path / 'run' / 'inputs.json').exists()
    raise NotImplementedError

  monkeypatch.setattr(reference, 'attach', scored)
  with pytest.raises(NotImplementedError):
    train.train(tmp_path / 'run', page)
  # No step was made, but a rerun is still of the same run.
  _append(pathlib.Path(page['train_data']['path']))
  with pytest.raises(ValueError, match=r'train_data \('):
    train.train(tmp_path / 'run', page)


def test_a_reference_that_changes_while_the_run_goes_on(page):
  """Samples are compared with what is read again."""
  page = page | dict(method=dict(name='sft'))
  for part in ('train', 'eval'):
    page[f'{part}_data'] = page[f'{part}_data'] | dict(kind='sft')
  page['samples'] = dict(every=1, num_prompts=1, num_samples=1)
  page['samples']['max_new_tokens'] = 2
  s, built = _loaded(page)
  known = inputs.Inputs()
  builds.prepare(s, built, score=None, known=known)
  build.read_reference(s, known, built.config)
  _retrain(pathlib.Path(page['model']['reference']))
  with pytest.raises(ValueError, match=r'inputs differ.*model\.reference \('):
    build.read_reference(s, known, built.config)


def test_what_marks_tokens_counts(page):
  """Two files whose tokens are the same, but not what is corrected."""
  tokenizer = tokenizers.load(page['model']['uri'])
  section = page['train_data']
  records = build.load_section('train_data', section, tokenizer)
  plain = records.fingerprint()
  marked = []
  for value in (0, 1):
    marks = records.tokens * 0 + value
    with_marks = records.__class__(
      **{**vars(records), 'extras': {'corrected': marks}}
    )
    assert with_marks.fingerprint() == plain
    found = inputs.of_data('', tokenizer, train_data=with_marks)
    marked.append(found['train_data'].sha256)
  assert marked[0] != marked[1]


def test_many_processes_have_one_commit(monkeypatch):
  known = inputs.Inputs()
  known.commits['hf://owner/name'] = 'a'
  known.save()
  monkeypatch.setattr(processes, 'many', lambda: True)
  lines = ['"hf://owner/name: a"', '"hf://owner/name: b"']
  monkeypatch.setattr(processes, '_gather', lambda text: lines)
  with pytest.raises(ValueError, match='same commits of the hub'):
    known.save()


def test_long_lists_of_files_are_cut(page):
  tokenizer = tokenizers.load(page['model']['uri'])
  records = build.load_section('train_data', page['train_data'], tokenizer)
  for count, shown in ((3, '0, 1, 2'), (5, '0, 1, 2, 2 more')):
    files = tuple(map(str, range(count)))
    many = records.__class__(**{**vars(records), 'files': files})
    found = inputs.of_data('', tokenizer, train_data=many)
    assert found['train_data'].source == shown
