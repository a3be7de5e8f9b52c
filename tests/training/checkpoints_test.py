"""Which checkpoints are kept; what survives damage, full disks and kills."""

import errno
import itertools
import logging
import math
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import pytest

from dpo_jax import types
from dpo_jax.training import checkpoint_manifest, checkpoints
from tests import states

ROOT = pathlib.Path(__file__).parent.parent.parent
COURSES = {
  'rising': [1.0, 2.0, 3.0, 4.0],
  'falling': [4.0, 3.0, 2.0, 1.0],
  'mixed': [2.0, math.nan, 0.5, 7.0, None, 0.5, 7.0, 3.0],
}


def _small(value=0.0, size=1):
  params = {'w': jnp.full((size,), value, jnp.float32)}
  return types.TrainState(jnp.int32(0), params, (), None, jax.random.key(0))


@pytest.mark.parametrize(
  'keep, mode, course',
  list(itertools.product((1, 3), ('min', 'max'), COURSES)),
)
def test_the_newest_and_the_best_are_kept(keep, mode, course, tmp_path):
  losses = COURSES[course]
  options = dict(keep=keep, best='loss', best_mode=mode)
  with checkpoints.open(tmp_path, **options) as saves:
    for i, loss in enumerate(losses):
      saves.save(i, _small(i), {}, None if loss is None else {'loss': loss})
      saves.wait()
      seen = [loss for loss in losses[: i + 1] if loss and loss == loss]
      extreme = {'min': min, 'max': max}[mode](seen)
      best = max(s for s in range(i + 1) if losses[s] == extreme)
      expected = sorted({*range(i + 1)[-keep:], best})
      assert saves.steps() == expected and saves.best_step() == best
  with checkpoints.open(tmp_path, **options) as saves:
    assert saves.steps() == expected and saves.best_step() == best
    assert saves.restore(_small())[0] == i


def test_a_save_in_the_foreground_is_complete_when_it_returns(tmp_path):
  with checkpoints.open(tmp_path, keep=1, background=False) as saves:
    for i in range(2):
      saves.save(i, _small(i), {})
      # The previous one is deleted only when the new one is complete.
      assert [p.name for p in tmp_path.iterdir()] == [str(i)]


def test_without_a_metric_only_the_newest_are_kept(tmp_path):
  with checkpoints.open(tmp_path, keep=2) as saves:
    for step in (5, 9, 10, 11):
      saves.save(step, _small(), {}, {'loss': float(step)})
    assert saves.best_step() is None
  assert saves.steps() == [10, 11]


def test_a_kill_before_the_clean_up_is_made_good(tmp_path):
  with checkpoints.open(tmp_path, keep=3) as saves:
    for step in (5, 9, 10):
      saves.save(step, _small(step), {})
  with checkpoints.open(tmp_path, keep=1) as saves:
    assert saves.restore(_small())[0] == 10
  assert [p.name for p in tmp_path.iterdir()] == ['10']


def test_a_step_is_saved_once(tmp_path):
  with checkpoints.open(tmp_path, keep=2) as saves:
    saves.save(1, states.make(1), {'n': 1})
    saves.save(1, states.make(2), {'n': 2})
    step, again, progress = saves.restore(states.make())
  assert (step, progress) == (1, {'n': 1})
  assert states.bits(again) == states.bits(states.make(1))


def test_bad_options_are_errors(tmp_path):
  with pytest.raises(ValueError, match='keep is 0'):
    checkpoints.open(tmp_path, keep=0)
  with pytest.raises(ValueError, match=r"best_mode 'mim'\. Did you mean 'min'"):
    checkpoints.open(tmp_path, keep=1, best='loss', best_mode='mim')
  with checkpoints.open(tmp_path, keep=1, best='eval/los') as saves:
    with pytest.raises(ValueError, match="Did you mean 'eval/loss'"):
      saves.save(1, _small(), {}, {'eval/loss': 1.0})
    assert saves.restore(_small()) is None


def _cut(path):
  os.truncate(path, path.stat().st_size // 2)


def _flip(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 4
  path.write_bytes(data)


DAMAGES = {'cut': _cut, 'flip': _flip, 'remove': pathlib.Path.unlink}


def _warnings(caplog):
  return [r.getMessage() for r in caplog.records if r.levelname == 'WARNING']


@pytest.mark.parametrize('damage', DAMAGES)
def test_any_damaged_file_falls_back_to_the_checkpoint_before(
  damage, tmp_path, caplog
):
  good = tmp_path / 'good'
  with checkpoints.open(good, keep=2) as saves:
    saves.save(10, states.make(1), {'n': 1})
    saves.save(20, states.make(2), {'n': 2})
  files = sorted(p for p in (good / '20').rglob('*') if p.is_file())
  assert len(files) > 8
  for i, file in enumerate(files):
    folder = tmp_path / str(i)
    shutil.copytree(good, folder)
    DAMAGES[damage](folder / file.relative_to(good))
    caplog.clear()
    with checkpoints.open(folder, keep=2) as saves:
      step, again, progress = saves.restore(states.make())
    assert step == 10 and saves.steps() == [10]
    (text,) = _warnings(caplog)
    assert 'Checkpoint 20' in text and 'from checkpoint 10' in text
    assert file.name in text or file.name == 'manifest.json'
    assert progress == {'n': 1}
    assert states.bits(again) == states.bits(states.make(1))


def test_an_unfinished_checkpoint_is_skipped(tmp_path, caplog):
  unfinished = tmp_path / '30.unfinished'
  (unfinished / 'd').mkdir(parents=True)
  with checkpoints.open(tmp_path, keep=2) as saves:
    assert saves.restore(_small()) is None  # restore() deletes nothing.
    (text,) = _warnings(caplog)
    assert 'Checkpoint 30' in text and 'from the start' in text
    assert unfinished.exists()
    saves.save(20, _small(), {})
    saves.wait()
    assert [p.name for p in tmp_path.iterdir()] == ['20']
    shutil.copytree(tmp_path / '20', unfinished)
    caplog.clear()
    assert saves.restore(_small())[0] == 20
    (text,) = _warnings(caplog)
    assert 'Checkpoint 30' in text and 'from checkpoint 20' in text
    saves.save(30, _small(), {})
  assert sorted(p.name for p in tmp_path.iterdir()) == ['20', '30']


def test_a_save_replaces_damaged_checkpoints(tmp_path):
  with checkpoints.open(tmp_path, keep=3) as saves:
    for step in (10, 20, 30):
      saves.save(step, states.make(step), {})
  for step in (20, 30):
    _flip(tmp_path / str(step) / 'record.json')
  with checkpoints.open(tmp_path, keep=1) as saves:
    assert saves.restore(states.make())[0] == 10
    saves.save(20, states.make(5), {})
    saves.wait()
    # A damaged 30 would block the next save of step 30.
    assert [p.name for p in tmp_path.iterdir()] == ['20']
    step, again, _ = saves.restore(states.make())
  assert step == 20 and states.bits(again) == states.bits(states.make(5))


def test_only_damaged_checkpoints_are_an_error(tmp_path):
  with checkpoints.open(tmp_path, keep=2) as saves:
    for step in (1, 2):
      saves.save(step, _small(), {})
  for step in (1, 2):
    _flip(tmp_path / str(step) / '_METADATA')
  saves = checkpoints.open(tmp_path, keep=2)
  with pytest.raises(
    ValueError, match=r'All checkpoints .* damaged .*2: _METADATA.*again'
  ):
    saves.restore(_small())
  assert (tmp_path / '1').exists() and (tmp_path / '2').exists()


@pytest.fixture
def small_disk(tmp_path):
  """A file system of 8 MB."""
  folder = tmp_path / 'disk'
  folder.mkdir()
  mount = ['mount', '-t', 'tmpfs', '-o', 'size=8m', 'tmpfs', str(folder)]
  if os.getuid() or subprocess.run(mount, capture_output=True).returncode:
    pytest.skip('needs the right to mount a file system')
  try:
    yield folder
  finally:
    subprocess.run(['umount', str(folder)], check=True)


@pytest.mark.parametrize('found', ['before', 'while writing'])
def test_a_full_disk_is_reported(found, small_disk, monkeypatch):
  usage = shutil.disk_usage
  if found == 'while writing':
    monkeypatch.setattr(
      shutil, 'disk_usage', lambda path: usage(path)._replace(free=10**12)
    )
  with checkpoints.open(small_disk, keep=1) as saves:
    saves.save(10, _small(1.0, size=1 << 20), {'n': 1})
    saves.wait()
    with pytest.raises(OSError, match=r'checkpoint 20 takes 4\.2 MB') as error:
      saves.save(20, _small(2.0, size=1 << 20), {'n': 2})
      if found == 'while writing':
        saves.save(30, _small(3.0), {})  # Raises the error of save 20.
    assert error.value.errno == errno.ENOSPC
    assert f"last good checkpoint is '{small_disk}/10'" in str(error.value)
    assert [p.name for p in small_disk.iterdir()] == ['10']
    step, again, progress = saves.restore(_small(size=1 << 20))
    assert (step, progress) == (10, {'n': 1})
    assert states.bits(again) == states.bits(_small(1.0, size=1 << 20))
    saves.save(40, _small(4.0), {})
  assert saves.steps() == [40]


def _run(script, *args, **options):
  env = dict(os.environ, PYTHONPATH=str(ROOT), JAX_PLATFORMS='cpu')
  command = [sys.executable, '-c', textwrap.dedent(script), *map(str, args)]
  return subprocess.Popen(
    command, env=env, stdout=subprocess.PIPE, text=True, **options
  )


def test_a_limit_on_file_sizes_is_reported(tmp_path):
  script = """
    import os, resource, sys
    from dpo_jax.training import checkpoints
    from tests.training import checkpoints_test as t
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    saves = checkpoints.open(sys.argv[1], keep=1)
    saves.save(1, t._small(1.0), {})
    saves.save(2, t._small(2.0, size=1 << 20), {})
    try:
      saves.close()
    except OSError as error:
      print(error.errno, os.listdir(sys.argv[1]), error)
  """
  out, _ = _run(script, tmp_path).communicate()
  assert out.startswith(f"{errno.EFBIG} ['1'] "), out
  assert 'checkpoint 2 takes 4.2 MB' in out
  with checkpoints.open(tmp_path, keep=1) as saves:
    assert saves.restore(_small())[0] == 1


def test_the_first_error_is_raised(tmp_path, monkeypatch, caplog):
  def fail(*args, **kwargs):
    raise OSError(errno.EIO, 'broken')

  monkeypatch.setattr(checkpoint_manifest, 'write', fail)
  with (
    pytest.raises(FloatingPointError),
    checkpoints.open(tmp_path, keep=1) as saves,
  ):
    saves.save(1, _small(), {})
    raise FloatingPointError
  assert 'checkpoint 1' in caplog.text
  saves = checkpoints.open(tmp_path, keep=1)
  saves.save(1, _small(), {})
  with pytest.raises(OSError, match='There is no earlier one'):
    saves.close()


SAVING = """
  import itertools, sys
  from dpo_jax.training import checkpoints
  assert 'orbax' not in sys.modules  # It would slow down every --help.
  from tests.training import checkpoints_test as t
  with checkpoints.open(sys.argv[1], keep=1) as saves:
    done = saves.restore(t._small(size=1000))
    first = done[0] + 1 if done else 0
    for step in itertools.count(first):
      state = t._small(float(step), size=1000)
      saves.save(step, state, {'n': step})
      print(step, flush=True)
"""


@pytest.mark.long
def test_kills_while_saving_lose_one_save_at_most(tmp_path):
  dice = random.Random(time.time_ns())
  for _ in range(5):
    process = _run(SAVING, tmp_path)
    lines = [process.stdout.readline() for _ in range(2)]
    time.sleep(dice.uniform(0, 0.3))
    process.send_signal(signal.SIGKILL)
    lines += process.communicate()[0].splitlines()
    assert process.returncode == -signal.SIGKILL
    with checkpoints.open(tmp_path, keep=1) as saves:
      step, state, progress = saves.restore(_small(size=1000))
      assert len(saves.steps()) <= 2
    # The last save may not be complete yet; the one before it is.
    assert step >= int(lines[-1]) - 1
    assert progress == {'n': step}
    expected = _small(float(step), size=1000)
    assert states.bits(state) == states.bits(expected)


def test_orbax_keeps_quiet(tmp_path, caplog):
  caplog.set_level(logging.INFO)
  logging.getLogger('absl').setLevel(logging.INFO)
  with checkpoints.open(tmp_path, keep=1) as saves:
    saves.save(1, _small(), {})
    saves.restore(_small())
  assert not [r for r in caplog.records if '/orbax/' in r.pathname]
