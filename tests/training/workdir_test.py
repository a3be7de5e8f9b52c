"""A run's directory: who may use it, and what a kill leaves there."""

import json
import math
import os
import pathlib
import signal
import socket
import subprocess
import sys
import textwrap
import threading

import pytest

from dpo_jax.training import workdir

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
  with workdir.claim(folder, CONFIG):
    (folder / 'metrics.jsonl').write_text('')
  written = (folder / 'config.json').read_bytes()
  reordered = dict(reversed(CONFIG.items())) | {
    'betas': [0.9, 0.999],
    'drops': {'100': 0.1},
  }
  for config in (CONFIG, reordered):
    with workdir.claim(folder, config):
      assert (folder / 'config.json').read_bytes() == written
  assert json.loads(written)['optimizer'] == CONFIG['optimizer']


CHANGES = {
  'value': ({'seed': 2}, ['seed: 1 -> 2']),
  'type': ({'seed': '1'}, ['seed: 1 -> "1"']),
  'list': ({'betas': (0.9, 0.99)}, ['betas: [0.9, 0.999] -> [0.9, 0.99]']),
  'nan': ({'nan': 0.0}, ['nan: NaN -> 0.0']),
  'section': (
    {'optimizer': {'name': 'sgd', 'options': {'eps': 1e-8, 'b': None}}},
    [
      'optimizer.name: "adamw" -> "sgd"',
      'optimizer.options.b: nothing -> null',
    ],
  ),
  'section gone': (
    {'optimizer': None},
    [
      'optimizer: nothing -> null',
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
  with workdir.claim(tmp_path, CONFIG):
    (tmp_path / 'metrics.jsonl').write_text('')
  with (
    pytest.raises(ValueError, match='another config') as error,
    workdir.claim(tmp_path, CONFIG | change),
  ):
    raise AssertionError
  text = str(error.value)
  for line in expected:
    assert f'\n  {line}' in text
  # The first line, the differences, and what to do.
  assert text.count('\n') == len(expected) + 1
  assert 'remove this one' in text and str(tmp_path) in text
  with workdir.claim(tmp_path, CONFIG):  # The refused one holds no lock.
    pass


def test_a_run_that_has_not_begun_takes_another_config(tmp_path):
  for seed in (1, 2):
    with workdir.claim(tmp_path, {'seed': seed}):
      assert json.loads((tmp_path / 'config.json').read_text())['seed'] == seed
  (tmp_path / 'samples').mkdir()
  with (
    pytest.raises(ValueError, match='seed: 2 -> 1'),
    workdir.claim(tmp_path, {'seed': 1}),
  ):
    raise AssertionError


def test_inputs_belong_to_a_config(tmp_path):
  """Those of one that has not begun go with it."""
  inputs = tmp_path / 'inputs.json'
  for seed, there in ((1, False), (1, True), (2, False)):
    with workdir.claim(tmp_path, {'seed': seed}):
      assert inputs.exists() == there
      inputs.write_text('{}')
  (tmp_path / 'samples').mkdir()
  with (
    pytest.raises(ValueError, match='seed: 2 -> 1'),
    workdir.claim(tmp_path, {'seed': 1}),
  ):
    raise AssertionError
  assert inputs.exists()


def test_what_a_kill_left_half_written_is_removed(tmp_path):
  with workdir.claim(tmp_path, CONFIG):
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
  with workdir.claim(tmp_path, CONFIG):
    assert not model.exists() and not samples.exists()
    assert other.exists() and (tmp_path / 'metrics.jsonl').exists()


def test_a_directory_of_other_files_is_refused_and_left_alone(tmp_path):
  (tmp_path / 'thesis.tex').write_text('x')
  (tmp_path / 'file').write_text('x')
  for path, match in (
    (tmp_path, r'not empty .*config\.json'),
    (tmp_path / 'file', 'a file'),
  ):
    with pytest.raises(ValueError, match=match), workdir.claim(path, CONFIG):
      raise AssertionError
  assert {p.name for p in tmp_path.iterdir()} == {'thesis.tex', 'file'}


HOLD = """
  from dpo_jax.training import workdir
  with workdir.claim(pathlib.Path(sys.argv[1]), {'seed': 1}):
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
      workdir.claim(tmp_path, other),
    ):
      raise AssertionError
    assert str(tmp_path) in str(error.value)
  holder.kill()
  holder.wait()
  with workdir.claim(tmp_path, config):
    assert str(os.getpid()) in (tmp_path / '.lock').read_text()
    late = _start(HOLD, tmp_path)
    assert late.wait() != 0
  holder = _start(HOLD, tmp_path)
  holder.communicate()
  assert holder.returncode == 0


KILLED = """
  import os, signal
  from dpo_jax.training import workdir
  def die(*args):
    os.kill(os.getpid(), signal.SIGKILL)
  setattr(*{
    'before the lock': (workdir.fcntl, 'flock', die),
    'before config.json': (workdir, '_settle', die),
    'before its rename': (os, 'replace', die),
  }.get(sys.argv[2], (workdir, 'unused', die)))
  with workdir.claim(pathlib.Path(sys.argv[1]), {'seed': 1}):
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
  with workdir.claim(folder, {'seed': 1}):
    assert json.loads((folder / 'config.json').read_text()) == {'seed': 1}


ROWS = [b'{"step": 0}', b'{"step": 5, "x": "nan"}', b'{"step": 5, "y": 1}']
LATE = [b'{"step": 6}', b'{"step": 10}']


@pytest.mark.parametrize(
  'end', [b'\n', b'\n{"step": 1', b'\n{"st', b'\n\0\0\0', b'']
)
def test_rewinding_drops_later_rows_and_a_torn_one(end, tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_bytes(b'\n'.join(ROWS + LATE) + end)
  workdir.rewind(path, 5)
  assert path.read_bytes() == b'\n'.join(ROWS) + b'\n'
  workdir.rewind(path, 5)
  assert path.read_bytes() == b'\n'.join(ROWS) + b'\n'
  workdir.rewind(path, -1)
  assert path.read_bytes() == b''
  workdir.rewind(path, 5)
  assert [p.name for p in tmp_path.iterdir()] == ['metrics.jsonl']


def test_rewinding_keeps_a_row_that_lacks_only_its_newline(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_bytes(b'\n'.join(ROWS))
  workdir.rewind(path, 5)
  assert path.read_bytes() == b'\n'.join(ROWS) + b'\n'


def test_rewinding_refuses_a_damaged_row_and_takes_a_missing_file(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  workdir.rewind(path, 5)
  assert not path.exists()
  for row in (b'{"step"', b'[1]', b'{"loss": 1}', b'"step"'):
    path.write_bytes(b'\n'.join([ROWS[0], row, ROWS[1]]) + b'\n')
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r'metrics\.jsonl:2.* is no row'):
      workdir.rewind(path, 5)
    assert path.read_bytes() == before


def test_sigterm_sets_a_flag_and_is_given_back():
  seen = []
  before = signal.signal(signal.SIGTERM, lambda *_: seen.append(1))
  try:
    for _ in range(2):
      with workdir.sigterm() as stopping:
        assert not stopping()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopping() and not seen
    os.kill(os.getpid(), signal.SIGTERM)
    assert seen
  finally:
    signal.signal(signal.SIGTERM, before)


def test_a_second_sigterm_ends_the_process():
  process = _start("""
    import signal
    from dpo_jax.training import workdir
    with workdir.sigterm() as stopping:
      print('ready', flush=True)
      while not stopping():
        signal.pause()
      print('stopping', flush=True)
      sys.stdin.read()
  """)
  process.terminate()
  assert process.stdout.readline() == 'stopping\n'
  process.terminate()
  assert process.wait() == -signal.SIGTERM


def test_sigterm_needs_the_main_thread():
  raised = []

  def enter():
    try:
      with workdir.sigterm():
        pass
    except ValueError as error:
      raised.append(error)

  thread = threading.Thread(target=enter)
  thread.start()
  thread.join()
  assert raised


def test_a_run_may_go_on_elsewhere(tmp_path):
  """On another mesh, in other processes: nothing that is computed differs."""
  with workdir.claim(tmp_path / 'a', {**CONFIG, 'mesh': {'data': 8}}):
    (tmp_path / 'a' / 'metrics.jsonl').touch()
  here = {**CONFIG, 'mesh': {'fsdp': 4}, 'distributed': {'timeout': 5}}
  with workdir.claim(tmp_path / 'a', here):
    config = json.loads((tmp_path / 'a' / 'config.json').read_text())
    assert config['mesh'] == {'fsdp': 4}
  with (
    pytest.raises(ValueError, match='seed: 1 -> 2'),
    workdir.claim(tmp_path / 'a', {**here, 'seed': 2}),
  ):
    pass
