"""Runs that are killed, stopped or refused, as real processes."""

import contextlib
import functools
import hashlib
import os
import random
import shutil
import signal
import subprocess
import time

import pytest

from dpo_jax import train
from experiments.crashes import runs
from tests import tiny

pytestmark = [pytest.mark.slow, pytest.mark.long]

FLAGS = (
  '--config.log.tensorboard=False',
  '--config.checkpoints.keep=2',
)
SAVED = (6, 12, 18, 24)


@pytest.fixture(scope='module')
def shared(tmp_path_factory):
  """Folders that all runs here share."""
  folder = tmp_path_factory.mktemp('crashes')
  tiny.write(folder / 'data')
  return dict(data=folder / 'data', jit=folder / 'jit')


def _whole(method, shared, folder):
  """(place, seconds) of an undisturbed run."""
  place = runs.Place(method, root=folder, flags=FLAGS, **shared)
  return place, runs.whole(place)


@pytest.mark.parametrize(
  ('method', 'kills'), [('dpo', 5), ('ppo', 3), ('online_dpo', 3)]
)
def test_a_killed_run_ends_bit_identically(shared, tmp_path, method, kills):
  expected, seconds = _whole(method, shared, tmp_path / 'whole')
  place = expected._replace(root=tmp_path / 'killed')
  # The first run was half compilation.
  choose = functools.partial(runs.any_time, random.Random(4), seconds / 2)
  struck = runs.under_fire(place, choose, kills=kills)
  assert struck
  assert not runs.differences(expected.workdir, place.workdir), struck


@pytest.fixture(scope='module')
def undisturbed(shared, tmp_path_factory):
  """The place of a finished run of SFT."""
  return _whole('sft', shared, tmp_path_factory.mktemp('undisturbed'))[0]


@pytest.fixture(scope='module')
def stopped(undisturbed, tmp_path_factory):
  """(place, what it printed, what a second process there printed)."""
  place = undisturbed._replace(root=tmp_path_factory.mktemp('stopped'))
  process = runs.Process(place)
  process.wait_for_step(8)
  process.popen.send_signal(signal.SIGSTOP)
  before = _files(place.workdir)
  second = runs.Process(place)
  assert second.wait() == 1
  assert _files(place.workdir) == before
  process.popen.send_signal(signal.SIGTERM)
  process.popen.send_signal(signal.SIGCONT)
  assert process.wait() == runs.TERMINATED, process.text()
  return place, process, second


@pytest.fixture
def copy(stopped, tmp_path):
  """A copy of the stopped run."""
  place = stopped[0]
  shutil.copytree(place.root, tmp_path / 'copy')
  return place._replace(root=tmp_path / 'copy')


def _files(folder):
  """SHA-256 of every file, by name."""
  return {
    str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
    for path in folder.rglob('*')
    if path.is_file()
  }


def _rerun(place):
  """The output of the same command, which must succeed."""
  process = runs.Process(place)
  assert not process.wait(), process.text()[-3000:]
  return process.text()


def test_sigterm_saves_and_the_rerun_goes_on(stopped, copy, undisturbed):
  step = runs.checkpoint_steps(copy.workdir)[-1]
  assert 8 <= step < 24
  assert f'Stopped after step {step}; the same command' in stopped[1].text()
  assert not (copy.workdir / 'params').exists()
  # A second time, while it resumes.
  blow = runs.Blow(signal.SIGKILL, 0.0, nth=2)
  assert runs.Process(copy).strike(blow) == -signal.SIGKILL
  assert 'Going on from the checkpoint of step' in _rerun(copy)
  assert not runs.differences(undisturbed.workdir, copy.workdir)


def test_a_second_process_is_refused(stopped):
  _, first, second = stopped
  message = f'is in use by process {first.popen.pid} on '
  assert message in second.text()
  assert 'Wait for it, stop it, or give another directory' in second.text()


def test_another_config_is_refused_and_leaves_the_run_alone(copy):
  before = _files(copy.workdir)
  config = tiny.page(copy.data, method='sft')
  with pytest.raises(ValueError, match='another config') as error:
    train.train(copy.workdir, config)
  text = str(error.value)
  assert '\n  steps: 24 -> 12\n' in text
  assert '\n  checkpoints.every: 6 -> 12\n' in text
  assert 'seed' not in text
  del before['.lock']  # It names its last holder.
  after = _files(copy.workdir)
  del after['.lock']
  assert after == before


def test_a_damaged_checkpoint_is_passed_over(copy, undisturbed):
  *_, before, newest = runs.checkpoint_steps(copy.workdir)
  folder = copy.workdir / 'checkpoints' / str(newest)
  files = [path for path in folder.rglob('*') if path.is_file()]
  largest = max(files, key=lambda path: path.stat().st_size)
  content = bytearray(largest.read_bytes())
  content[len(content) // 2] ^= 1
  largest.write_bytes(content)
  text = _rerun(copy)
  assert f'Checkpoint {newest} in {folder.parent} is damaged' in text
  assert f'going on from checkpoint {before}.' in text
  assert not runs.differences(undisturbed.workdir, copy.workdir)


@contextlib.contextmanager
def _small_disk(folder):
  """`folder`, with its contents, on a file system of its own of 8 MB."""
  held = folder.with_name('held')
  folder.rename(held)
  folder.mkdir()
  mount = ['mount', '-t', 'tmpfs', '-o', 'size=8m', 'tmpfs', str(folder)]
  if os.getuid() or subprocess.run(mount, capture_output=True).returncode:
    pytest.skip('needs the right to mount a file system')
  try:
    shutil.copytree(held, folder, dirs_exist_ok=True)
    yield
  finally:
    subprocess.run(['umount', str(folder)], check=True)


def test_a_full_disk_ends_the_run_which_can_go_on(copy, undisturbed):
  with _small_disk(copy.workdir):
    steps = runs.checkpoint_steps(copy.workdir)
    good = copy.workdir / 'checkpoints' / str(steps[-1])
    before = _files(good)
    filler = copy.workdir / 'filler'
    free = shutil.disk_usage(copy.workdir).free
    filler.write_bytes(bytes(free - (1 << 20)))
    process = runs.Process(copy)
    assert process.wait() == 1
    text = process.text()
    due = min(step for step in SAVED if step > steps[-1])
    assert f'No space left on device: checkpoint {due} takes 0.' in text
    assert f"The last good checkpoint is '{good}'; the same" in text
    assert runs.checkpoint_steps(copy.workdir) == steps
    assert _files(good) == before
    filler.unlink()
    assert f'from the checkpoint of step {steps[-1]}.' in _rerun(copy)
    assert not runs.differences(undisturbed.workdir, copy.workdir)


def test_a_finished_run_is_left_as_it_is(undisturbed):
  before = _files(undisturbed.workdir)
  began = time.monotonic()
  assert 'This run is finished' in _rerun(undisturbed)
  assert time.monotonic() - began < 20  # Mostly imports.
  after = _files(undisturbed.workdir)
  assert after.pop('.lock') != before.pop('.lock')
  assert after == before


def test_a_wrong_config_is_not_in_the_way_of_the_right_one(shared, tmp_path):
  config = tiny.page(shared['data'])
  for name in ('first', 'second'):
    config['model']['uri'] = str(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=f'/{name}'):
      train.train(tmp_path / 'run', config)
