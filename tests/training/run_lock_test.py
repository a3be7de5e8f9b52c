"""Claims of a run's directory: locks, configs, and leftovers of kills."""

import json
import math
import os
import pathlib
import signal
import socket
import subprocess
import sys
import textwrap

import pytest

from dpo_jax.training import run_lock

ROOT = pathlib.Path(__file__).parent.parent.parent
CONFIG = {
  'seed': 1,
  'betas': (0.9, 0.999),
  'nan': math.nan,
  'optimizer': {'name': 'adamw', 'options': {'eps': 1e-8}},
  'empty': {},
  'drops': {100: 0.1},
}


def _start(script, *args):
  """A process that runs `script`, once it has printed a line."""
  script = 'import sys, pathlib\n' + textwrap.dedent(script)
  process = subprocess.Popen(
    [sys.executable, '-c', script, *map(str, args)],
    env=dict(os.environ, PYTHONPATH=str(ROOT)),
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )
  process.stdout.readline()
  return process


def test_a_run_goes_on_with_an_equal_config(tmp_path):
  folder = tmp_path / 'runs' / 'a'
  with run_lock.claim(folder, CONFIG):
    (folder / 'metrics.jsonl').write_text('')
  written = (folder / 'config.json').read_bytes()
  reordered = dict(reversed(CONFIG.items())) | {
    'betas': [0.9, 0.999],
    'drops': {'100': 0.1},
  }
  for config in (CONFIG, reordered):
    with run_lock.claim(folder, config):
      assert (folder / 'config.json').read_bytes() == written
  # An option that is None is one that is not given.
  with run_lock.claim(folder, CONFIG | {'epochs': None}):
    pass
  assert json.loads(written)['optimizer'] == CONFIG['optimizer']


CHANGES = {
  'value': ({'seed': 2}, ['seed: 1 -> 2']),
  'type': ({'seed': '1'}, ['seed: 1 -> "1"']),
  'list': ({'betas': (0.9, 0.99)}, ['betas: [0.9, 0.999] -> [0.9, 0.99]']),
  'nan': ({'nan': 0.0}, ['nan: NaN -> 0.0']),
  'section': (
    {'optimizer': {'name': 'sgd', 'options': {'eps': 1e-8, 'b': 0.5}}},
    [
      'optimizer.name: "adamw" -> "sgd"',
      'optimizer.options.b: nothing -> 0.5',
    ],
  ),
  'section gone': (
    {'optimizer': None},
    [
      'optimizer.name: "adamw" -> nothing',
      'optimizer.options.eps: 1e-08 -> nothing',
    ],
  ),
  'filled': (
    {'empty': {'a': 1}},
    ['empty.a: nothing -> 1', 'empty: {} -> not'],
  ),
}


@pytest.mark.parametrize('name', CHANGES)
def test_another_config_is_refused_with_what_differs(name, tmp_path):
  change, expected = CHANGES[name]
  with run_lock.claim(tmp_path, CONFIG):
    (tmp_path / 'metrics.jsonl').write_text('')
  with (
    pytest.raises(ValueError, match='another config') as error,
    run_lock.claim(tmp_path, CONFIG | change),
  ):
    raise AssertionError
  text = str(error.value)
  for line in expected:
    assert f'\n  {line}' in text
  # The first line, the differences, and the advice.
  assert text.count('\n') == len(expected) + 1
  assert 'remove this one' in text and str(tmp_path) in text
  with run_lock.claim(tmp_path, CONFIG):  # The refused claim holds no lock.
    pass


def test_a_run_that_has_not_begun_takes_another_config(tmp_path):
  for seed in (1, 2):
    with run_lock.claim(tmp_path, {'seed': seed}):
      assert json.loads((tmp_path / 'config.json').read_text())['seed'] == seed
  (tmp_path / 'samples').mkdir()
  with (
    pytest.raises(ValueError, match='seed: 2 -> 1'),
    run_lock.claim(tmp_path, {'seed': 1}),
  ):
    raise AssertionError


def test_inputs_belong_to_a_config(tmp_path):
  """A run that has not begun leaves no inputs.json to another config."""
  inputs = tmp_path / 'inputs.json'
  for seed, there in ((1, False), (1, True), (2, False)):
    with run_lock.claim(tmp_path, {'seed': seed}):
      assert inputs.exists() == there
      inputs.write_text('{}')
  (tmp_path / 'samples').mkdir()
  with (
    pytest.raises(ValueError, match='seed: 2 -> 1'),
    run_lock.claim(tmp_path, {'seed': 1}),
  ):
    raise AssertionError
  assert inputs.exists()


def test_what_a_kill_left_half_written_is_removed(tmp_path):
  with run_lock.claim(tmp_path, CONFIG):
    (tmp_path / 'metrics.jsonl').write_text('')
  other = tmp_path / '.mine.tmp'
  other.write_text('x')
  model = tmp_path / f'.params.{"0a" * 8}.tmp'
  model.mkdir()
  (model / 'model.safetensors').write_text('x')
  (model / f'.tokenizer.json.{"2b" * 8}.tmp').write_text('x')
  samples = tmp_path / 'samples' / f'.000000.jsonl.{"1f" * 8}.tmp'
  samples.parent.mkdir()
  samples.write_text('x')
  with run_lock.claim(tmp_path, CONFIG):
    assert not model.exists() and not samples.exists()
    assert other.exists() and (tmp_path / 'metrics.jsonl').exists()


def test_a_directory_of_other_files_is_refused_and_left_alone(tmp_path):
  (tmp_path / 'thesis.tex').write_text('x')
  (tmp_path / 'file').write_text('x')
  for path, match in (
    (tmp_path, r'not empty .*config\.json'),
    (tmp_path / 'file', 'a file'),
  ):
    with pytest.raises(ValueError, match=match), run_lock.claim(path, CONFIG):
      raise AssertionError
  assert {p.name for p in tmp_path.iterdir()} == {'thesis.tex', 'file'}


HOLD = """
  from dpo_jax.training import run_lock
  with run_lock.claim(pathlib.Path(sys.argv[1]), {'seed': 1}):
    print('held', flush=True)
    sys.stdin.read()
"""


def test_one_process_holds_a_directory_until_it_dies(tmp_path):
  config = {'seed': 1}
  holder = _start(HOLD, tmp_path)
  expected = f'in use by process {holder.pid} on {socket.gethostname()}'
  for other in (config, {'seed': 2}):
    with (
      pytest.raises(ValueError, match=expected) as error,
      run_lock.claim(tmp_path, other),
    ):
      raise AssertionError
    assert str(tmp_path) in str(error.value)
  holder.kill()
  holder.wait()
  with run_lock.claim(tmp_path, config):
    assert str(os.getpid()) in (tmp_path / '.lock').read_text()
    late = _start(HOLD, tmp_path)
    assert late.wait() != 0
  holder = _start(HOLD, tmp_path)
  holder.communicate()
  assert holder.returncode == 0


KILLED = """
  import os, signal
  from dpo_jax.training import run_lock
  def die(*args):
    os.kill(os.getpid(), signal.SIGKILL)
  setattr(*{
    'before the lock': (run_lock.fcntl, 'flock', die),
    'before config.json': (run_lock, '_check_config', die),
    'before its rename': (os, 'replace', die),
  }.get(sys.argv[2], (run_lock, 'unused', die)))
  with run_lock.claim(pathlib.Path(sys.argv[1]), {'seed': 1}):
    die()
"""


@pytest.mark.parametrize(
  'moment',
  ['before the lock', 'before config.json', 'before its rename', 'after it'],
)
def test_a_kill_leaves_nothing_in_the_way(moment, tmp_path):
  folder = tmp_path / 'run'
  killed = _start(KILLED, folder, moment)
  assert killed.wait() == -signal.SIGKILL
  assert folder.exists()
  assert (folder / 'config.json').exists() == (moment == 'after it')
  with run_lock.claim(folder, {'seed': 1}):
    assert json.loads((folder / 'config.json').read_text()) == {'seed': 1}


def test_a_run_may_go_on_elsewhere(tmp_path):
  """On another mesh and in other processes, which compute the same."""
  with run_lock.claim(tmp_path / 'a', {**CONFIG, 'mesh': {'data': 8}}):
    (tmp_path / 'a' / 'metrics.jsonl').touch()
  here = {**CONFIG, 'mesh': {'fsdp': 4}, 'distributed': {'timeout': 5}}
  with run_lock.claim(tmp_path / 'a', here):
    config = json.loads((tmp_path / 'a' / 'config.json').read_text())
    assert config['mesh'] == {'fsdp': 4}
  with (
    pytest.raises(ValueError, match='seed: 1 -> 2'),
    run_lock.claim(tmp_path / 'a', {**here, 'seed': 2}),
  ):
    pass
