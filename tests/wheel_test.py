"""A wheel, installed: its pages train from an empty directory."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from dpo_jax import pages
from tests import tiny

ROOT = pathlib.Path(__file__).parent.parent
pytest.importorskip('setuptools')


@pytest.fixture(scope='module')
def site(tmp_path_factory):
  """A directory with the wheel alone installed in it."""
  source, wheels, site = (
    tmp_path_factory.mktemp(name) for name in ('source', 'wheels', 'site')
  )
  for name in ('setup.py', 'pyproject.toml', 'README.md', 'LICENSE'):
    shutil.copy(ROOT / name, source)
  for name in ('dpo_jax', 'configs'):
    skipped = shutil.ignore_patterns('__pycache__')
    shutil.copytree(ROOT / name, source / name, ignore=skipped)
  offline = ('--quiet', '--no-deps', '--no-index')
  build = ('wheel', *offline, '--no-build-isolation', '-w', wheels, source)
  _run(sys.executable, '-m', 'pip', *build)
  (wheel,) = wheels.glob('*.whl')
  _run(sys.executable, '-m', 'pip', 'install', *offline, '-t', site, wheel)
  return site


def _run(*command, check=True, **options):
  done = subprocess.run(
    [*map(str, command)], capture_output=True, text=True, **options
  )
  assert not check or not done.returncode, done.stderr
  return done


def _train(site, folder, *arguments, check=True):
  env = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
  return _run(
    *(sys.executable, '-m', 'dpo_jax.train', *arguments),
    cwd=folder,
    env=env | {'PYTHONPATH': str(site)},
    check=check,
  )


@pytest.mark.long
def test_pages_of_the_wheel_are_found(site, tmp_path):
  installed = site / 'dpo_jax' / 'configs'
  shipped = {path.stem for path in installed.glob('*.py')} - {'__init__'}
  assert shipped == pages.shipped().keys()
  shutil.copy(installed / 'sft.py', tmp_path / 'mine.py')
  for page in ('dpo', 'mine.py'):
    found = _train(
      *(site, tmp_path, f'--config={page}'),
      *('--config.data.path=y.jsonl', '--config.model.uri=Qwen/Qwen2.5-0.5B'),
      check=False,
    )
    assert found.returncode == 1 and 'Traceback' not in found.stderr
    line = found.stderr.splitlines()[-1]
    assert line.endswith('hub is hf://Qwen/Qwen2.5-0.5B.')
  unknown = _train(site, tmp_path, '--config=configs/dpoo.py', check=False)
  assert "Did you mean 'dpo'?" in unknown.stderr.splitlines()[-1]


@pytest.mark.long
def test_a_page_of_the_wheel_trains(site, tmp_path):
  tiny.write(tmp_path / 'world')
  empty = tmp_path / 'empty'
  empty.mkdir()
  _train(
    *(site, empty, '--config=configs/dpo.py:tiny'),
    *('--config.model.uri', tmp_path / 'world' / 'model'),
    *('--config.data.path', tmp_path / 'world' / 'train.jsonl'),
    *('--config.data.max_length=48', '--config.data.max_prompt_length=24'),
    *('--config.method.loss=ipo', '--config.samples=None'),
  )
  config = json.loads((empty / 'runs' / 'dpo' / 'config.json').read_text())
  assert config['method']['loss'] == 'ipo'
  assert 'label_smoothing' not in config['method']
  assert (empty / 'runs' / 'dpo' / 'params' / 'config.json').exists()
