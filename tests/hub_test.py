"""The hub without a network: a filled cache, and a refused connection."""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys

import pytest

from dpo_jax import weights
from dpo_jax.assets import hub as hub_lib
from tests import tiny

ROOT = pathlib.Path(__file__).parent.parent
OLD, NEW = 'a' * 40, 'b' * 40
LOAD = """
import json, pathlib, sys
from dpo_jax import assets, data, tokenizers, weights

model, file, pinned = sys.argv[1:]
tokenizer = tokenizers.load(model)
section = dict(
  source='jsonl', path=file, max_length=48, max_prompt_length=24
)
print(json.dumps({
  'vocab_size': weights.load(model)[0].vocab_size,
  'tokens': tokenizer.vocab_size,
  'records': len(data.load(section, tokenizer=tokenizer)),
  'pinned': str(assets.resolve(pinned)),
}))
"""


def _fill(home, repo, commit, folder, refs):
  """A repository as the hub client caches it: refs, snapshots of blobs."""
  root = home / 'hub' / repo
  for ref in refs:
    (root / 'refs').mkdir(parents=True, exist_ok=True)
    (root / 'refs' / ref).write_text(commit)
  (root / 'blobs').mkdir(exist_ok=True)
  snapshot = root / 'snapshots' / commit
  for path in sorted(p for p in folder.rglob('*') if p.is_file()):
    blob = root / 'blobs' / f'{commit[:4]}{path.name}'
    shutil.copy(path, blob)
    link = snapshot / path.relative_to(folder)
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(os.path.relpath(blob, link.parent))
  return snapshot


def _run(code, *args, **env):
  kept = {k: v for k, v in os.environ.items() if not k.startswith('HF_')}
  return subprocess.run(
    [sys.executable, '-c', code, *args],
    env=kept | env | {'PYTHONPATH': str(ROOT)},
    capture_output=True,
    text=True,
  )


TRAIN = """
import sys
from dpo_jax import train
from tests import tiny
import pathlib

run, held_out = sys.argv[1:]
page = tiny.page(pathlib.Path('none'), method='sft')
page |= dict(steps=2, log_every=1, eval_every=1)
page['checkpoints'] = dict(every=1, keep=2)
page['model']['uri'] = 'hf://owner/name'
page['train_data']['path'] = 'hf://datasets/owner/pairs/data/train.jsonl'
page['eval_data']['path'] = held_out
for part in ('train', 'eval'):
  page[f'{part}_data']['kind'] = 'pairs'
  page[f'{part}_batches'] = dict(batch_size=2)
page['method'] = dict(name='dpo', beta=0.1)
train.train(run, page)
"""


@pytest.fixture(scope='module')
def home(tmp_path_factory):
  """An HF_HOME with a model, and two revisions of a data set."""
  path = tmp_path_factory.mktemp('hub')
  tiny.write(path / 'made')
  _fill(path, 'models--owner--name', OLD, path / 'made' / 'model', ['main'])
  for commit, ref, count in ((OLD, 'main', 3), (NEW, 'v2', 5)):
    folder = path / 'made' / ref
    (folder / 'data').mkdir(parents=True)
    lines = [json.dumps(row) + '\n' for row in tiny.rows(0, count)]
    (folder / 'data' / 'train.jsonl').write_text(''.join(lines))
    _fill(path, 'datasets--owner--pairs', commit, folder, [ref])
  return path


def test_all_loaders_read_a_filled_cache_offline(home):
  """Model, tokenizer and records; a revision by its name and its commit."""
  done = _run(
    LOAD,
    'hf://owner/name',
    'hf://datasets/owner/pairs@v2/data/train.jsonl',
    f'hf://datasets/owner/pairs@{OLD}/data/train.jsonl',
    HF_HOME=str(home),
    HF_HUB_OFFLINE='1',
    # Refuses connections, were there one.
    HF_ENDPOINT='http://127.0.0.1:9',
  )
  assert not done.returncode, done.stderr
  found = json.loads(done.stdout.splitlines()[-1])
  assert found['tokens'] == found['vocab_size'] > 200
  assert found['records'] == 5
  pinned = pathlib.Path(found['pinned'])
  assert pinned.parts[-3:] == (OLD, 'data', 'train.jsonl')
  assert len(pinned.read_text().splitlines()) == 3


@pytest.mark.long
def test_a_run_goes_on_with_the_commits_it_began_with(home, tmp_path):
  """Whatever main has become: another model here, other rows there."""
  hub = tmp_path / 'hub'
  shutil.copytree(home / 'hub', hub, symlinks=True)
  tiny.write(tmp_path / 'made')
  config = weights.read_config(str(tmp_path / 'made' / 'model'))
  shutil.rmtree(tmp_path / 'made' / 'model')
  tiny.save_model(tmp_path / 'made' / 'model', config, seed=7)
  for path in (home / 'made' / 'model').glob('tokenizer*'):
    shutil.copy(path, tmp_path / 'made' / 'model')
  _fill(tmp_path, 'models--owner--name', NEW, tmp_path / 'made' / 'model', [])
  kept = {}
  for name in ('run', 'other'):
    run = tmp_path / name
    for commit in (OLD, NEW):
      for repository in ('models--owner--name', 'datasets--owner--pairs'):
        (hub / repository / 'refs' / 'main').write_text(commit)
      held_out = tmp_path / 'made' / 'eval.jsonl'
      done = _run(
        TRAIN,
        str(run),
        str(held_out),
        HF_HOME=str(tmp_path),
        HF_HUB_OFFLINE='1',
        DPO_JAX_CACHE=str(tmp_path / 'cache'),
        JAX_PLATFORMS='cpu',
      )
      if commit == OLD:
        assert not done.returncode, done.stderr
        kept = json.loads((run / 'inputs.json').read_text())
        assert kept['commits'] == {
          'hf://owner/name': OLD,
          'hf://datasets/owner/pairs': OLD,
        }
        whole = (run / 'params' / 'model.safetensors').read_bytes()
        shutil.rmtree(run / 'params')
        shutil.rmtree(run / 'checkpoints' / '2')
        if name == 'other':
          del kept['commits']
          (run / 'inputs.json').write_text(json.dumps(kept))
    if name == 'run':
      assert not done.returncode, done.stderr
      assert (run / 'params' / 'model.safetensors').read_bytes() == whole
    else:  # Else it would have been other rows and weights.
      assert done.returncode
      data = 'hf://datasets/owner/pairs/data/train.jsonl'
      assert f'train_data ({data}): SHA-256' in done.stderr


@pytest.mark.parametrize('offline', ['0', '1'])
def test_what_cannot_be_had_says_what_to_set(offline, home):
  """Whether the connection is refused or none is tried."""
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))  # And nobody listens there.
    code = (
      'import time; from dpo_jax import assets\n'
      "time.sleep = lambda seconds: None  # Between the client's retries.\n"
      'try: assets.resolve("hf://owner/none")\n'
      'except FileNotFoundError as error: print(error)\n'
    )
    done = _run(
      code,
      HF_HOME=str(home),
      HF_HUB_OFFLINE=offline,
      HF_ENDPOINT=f'http://127.0.0.1:{free.getsockname()[1]}',
    )
  assert not done.returncode, done.stderr
  for said in (
    "'hf://owner/none'",
    'HF_HUB_OFFLINE=1',
    'an HF_HOME that holds it',
    'a local path',
    'HF_TOKEN',
  ):
    assert said in done.stdout
  assert 'as a model: ' in done.stdout


@pytest.mark.parametrize(
  ('rest', 'parsed'),
  [
    ('a/b', (None, 'a/b', None, None)),
    ('a/b/c/d.json', (None, 'a/b', None, 'c/d.json')),
    ('a/b@v2/c/d.json', (None, 'a/b', 'v2', 'c/d.json')),
    ('a/b@refs/pr/1', (None, 'a/b', 'refs/pr/1', None)),
    ('a/b@refs/heads/x/c.json', (None, 'a/b', 'refs/heads/x', 'c.json')),
    (
      'datasets/a/b@refs/convert/parquet/x/y.parquet',
      ('datasets/', 'a/b', 'refs/convert/parquet', 'x/y.parquet'),
    ),
  ],
)
def test_revisions_are_told_from_files(rest, parsed):
  assert hub_lib.parse(f'hf://{rest}', rest) == parsed
