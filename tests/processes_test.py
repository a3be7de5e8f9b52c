"""Runs of many real processes, which connect over loopback."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from dpo_jax.training import (
  launch,
  metrics,
  process_connections,
  processes,
  sharding,
)
from experiments.crashes import runs
from tests import tiny

PAGE = """
import pathlib
from ml_collections import config_dict
from tests import tiny

def get_config(folder):
  c = tiny.page(pathlib.Path(folder))
  c |= dict(eval_every=6)
  c['train_batches'] |= dict(max_shapes=1)
  c['checkpoints'] = dict(every=3, keep=1)
  c['mesh'] = dict(data=-1, fsdp=2)
  c['samples'] = dict(
    every=6, num_prompts=3, num_samples=2, max_new_tokens=4
  )
  c['distributed'] = dict(timeout=60)
  return config_dict.ConfigDict(c)
"""
ONLINE_PAGE = """
import pathlib
from ml_collections import config_dict
from tests import online_pages

def get_config(folder):
  c = online_pages.page(pathlib.Path(folder), 'ppo')
  c['mesh'] = dict(data=-1, fsdp=2)
  c['distributed'] = dict(timeout=60)
  c['samples'] = dict(every=12, num_prompts=3, num_samples=2, max_new_tokens=4)
  return config_dict.ConfigDict(c)
"""
FIRST = 4  # The step of the first logged row.
# Seconds in which all processes of a run end after one of them has died.
SOON = 15


def _free_port() -> int:
  with socket.create_server(('localhost', 0)) as server:
    return server.getsockname()[1]


class Run:
  """The started processes of a run; `texts()` are their outputs."""

  def __init__(
    self,
    root,
    shared,
    count,
    *,
    devices=1,
    door='train',
    flags=(),
    folders=None,
    page='page.py',
  ):
    self.workdir, port = root / 'run', _free_port()
    self.metrics = self.workdir / 'metrics.jsonl'
    # A run that resumes first rewrites the file.
    self.before = self.metrics.stat().st_ino if self.metrics.exists() else 0
    self.logs, self.popens = [], []
    for index in range(count):
      log = root / 'logs' / f'{time.monotonic_ns()}_{index}.txt'
      log.parent.mkdir(parents=True, exist_ok=True)
      own = flags[index] if flags else ()
      if door == 'train':
        own = [
          f'--config={shared / page}:data',
          f'--workdir={self.workdir}',
          *own,
        ]
      command = [sys.executable, '-m', f'dpo_jax.{door}', *own]
      env = os.environ | {
        'PYTHONPATH': str(runs.ROOT),
        'DPO_JAX_CACHE': str(root / 'cache'),
        'JAX_PLATFORMS': 'cpu',
        'XLA_FLAGS': os.environ['XLA_FLAGS']
        + f' --xla_force_host_platform_device_count={devices}',
      }
      if count > 1:
        env |= {
          'DPO_JAX_COORDINATOR': f'localhost:{port}',
          'DPO_JAX_NUM_PROCESSES': str(count),
          'DPO_JAX_PROCESS_ID': str(index),
        }
      with log.open('w') as out:
        folder = folders[index] if folders else shared
        popen = subprocess.Popen(
          command, cwd=folder, env=env, stdout=out, stderr=out
        )
      self.logs.append(log)
      self.popens.append(popen)

  def texts(self) -> list[str]:
    return [log.read_text('utf-8', 'replace') for log in self.logs]

  def wait(self, seconds: float = 240) -> list[int]:
    """The exit statuses; processes that still run then are killed."""
    until = time.monotonic() + seconds
    try:
      return [p.wait(max(until - time.monotonic(), 0.1)) for p in self.popens]
    finally:
      for popen in self.popens:
        with contextlib.suppress(ProcessLookupError):
          popen.kill()

  def end(self) -> 'Run':
    """Waits for all processes, which must succeed."""
    statuses = self.wait()
    assert not any(statuses), [text[-3000:] for text in self.texts()]
    return self

  def signal_at(self, step: int, index: int, number: int) -> None:
    """Sends a signal to one process once they have logged a row of a step."""
    while all(popen.poll() is None for popen in self.popens):
      path = self.metrics
      if path.exists() and path.stat().st_ino != self.before:
        rows = metrics.read_jsonl(path)
        if rows and rows[-1]['step'] >= step:
          self.popens[index].send_signal(number)
          return
      time.sleep(0.01)
    raise RuntimeError([text[-3000:] for text in self.texts()])


@pytest.fixture(scope='module')
def shared(tmp_path_factory):
  """A folder with data/, page.py and online.py."""
  folder = tmp_path_factory.mktemp('processes')
  tiny.write(folder / 'data')
  (folder / 'page.py').write_text(PAGE)
  (folder / 'online.py').write_text(ONLINE_PAGE)
  return folder


@pytest.fixture(scope='module')
def alone(shared, tmp_path_factory):
  """A run of one process."""
  return Run(tmp_path_factory.mktemp('alone'), shared, 1, devices=2).end()


@pytest.fixture(scope='module')
def two(shared, tmp_path_factory):
  """A run of two processes."""
  return Run(tmp_path_factory.mktemp('two'), shared, 2).end()


def _rows(run):
  return [json.loads(row) for row in runs.timeless_rows(run.workdir)]


def _assert_alike(expected, run):
  """The same files, and the same numbers up to float rounding."""
  there, here = _rows(expected), _rows(run)
  assert [row.keys() for row in here] == [row.keys() for row in there]
  for a, b in zip(there, here):
    if 0 < a['step'] <= FIRST:
      # Policy and reference start equal, so that rounding decides accuracies,
      # except in evaluations.
      a, b = (
        {k: row[k] for k in row if 'accuracies' not in k} for row in (a, b)
      )
    np.testing.assert_allclose(
      list(b.values()), list(a.values()), rtol=1e-4, atol=1e-5, err_msg=str(a)
    )
  names = [
    sorted(str(p.relative_to(r.workdir)) for p in r.workdir.rglob('*.*'))
    for r in (expected, run)
  ]
  names = [[n for n in part if 'checkpoints/' not in n] for part in names]
  assert names[0] == names[1]
  steps = runs.checkpoint_steps(expected.workdir)
  assert runs.checkpoint_steps(run.workdir) == steps


@pytest.mark.long
def test_two_processes_are_like_one(alone, two):
  _assert_alike(alone, two)
  first, second = two.texts()
  assert 'step     12  training' in first
  assert 'step ' not in second and 'it/s' not in second


@pytest.mark.long
def test_four_processes_are_like_one(alone, shared, tmp_path):
  _assert_alike(alone, Run(tmp_path, shared, 4).end())


@pytest.mark.long
def test_rollouts_of_two_processes_are_like_those_of_one(shared, tmp_path):
  one = Run(tmp_path / 'one', shared, 1, devices=2, page='online.py').end()
  two = Run(tmp_path / 'two', shared, 2, page='online.py').end()
  for there, here in zip(_rows(one), _rows(two), strict=True):
    assert here.keys() == there.keys()
    np.testing.assert_allclose(
      list(here.values()), list(there.values()), rtol=2e-3, atol=2e-4
    )
  assert 'rollouts  reward' in two.texts()[0]
  assert 'rollouts' not in two.texts()[1]


@pytest.mark.long
def test_two_processes_evaluate_like_one(two, shared, tmp_path):
  reports = []
  for count in (1, 2):
    root = tmp_path / str(count)
    out = root / 'report.json'
    flags = [str(two.workdir), '--checkpoint=latest', f'--out={out}']
    run = Run(
      root,
      shared,
      count,
      devices=2 // count,
      door='evaluate',
      flags=[flags] * count,
    ).end()
    assert 'perplexity' in run.texts()[0]
    assert all('perplexity' not in text for text in run.texts()[1:])
    reports.append(json.loads(out.read_text()))
  one, many = map(jax.tree.leaves, reports)
  assert len(one) == len(many) > 20
  for a, b in zip(one, many):
    assert b == (a if isinstance(a, str) else pytest.approx(a, rel=1e-5))


@pytest.mark.long
def test_struck_processes_end_and_the_rerun_is_bit_identical(
  two, shared, tmp_path
):
  run = Run(tmp_path, shared, 2)
  run.signal_at(4, 1, signal.SIGTERM)
  assert run.wait() == [runs.TERMINATED] * 2, run.texts()
  assert 'Stopped after step ' in run.texts()[0]
  run = Run(tmp_path, shared, 2)
  run.signal_at(8, 1, signal.SIGKILL)
  began = time.monotonic()
  assert run.wait() == [process_connections.FAILED, -signal.SIGKILL]
  assert time.monotonic() - began < SOON
  message = f'Process 1 of 2 (on {socket.gethostname()}) is gone, so process 0'
  assert f'{message} ends. {process_connections.RESUME}' in run.texts()[0]
  run = Run(tmp_path, shared, 2).end()
  assert 'Going on from the checkpoint of step' in run.texts()[0]
  assert runs.timeless_rows(run.workdir) == runs.timeless_rows(two.workdir)
  for path in (two.workdir / 'params').iterdir():
    same = run.workdir / 'params' / path.name
    assert same.read_bytes() == path.read_bytes(), path.name


@pytest.mark.long
def test_another_config_is_reported_by_every_process(shared, tmp_path):
  run = Run(tmp_path, shared, 2, flags=[(), ['--config.seed=1']])
  assert run.wait() == [1, 1]
  for text in run.texts():
    assert 'do not have the same config' in text
    assert 'process 0: seed: 0\n' in text
    assert 'process 1: seed: 1\n' in text
  assert not run.workdir.exists()


@pytest.mark.long
def test_other_data_is_reported_by_every_process(shared, tmp_path):
  tiny.write(tmp_path / 'data', num_train=95)
  run = Run(tmp_path, shared, 2, folders=[shared, tmp_path])
  assert run.wait() == [1, 1]
  for text in run.texts():
    assert 'do not have the same data' in text
    assert 'process 0: train_data: SHA-256' in text
    assert 'eval_data: SHA' not in text


# In one process.


@pytest.fixture
def place(monkeypatch):
  """place(coordinator, **environment): the result of `launch.find`."""
  for name in [*os.environ]:
    if name.startswith(('SLURM_', 'DPO_JAX_', 'OMPI_', 'JOB_COMPLETION')):
      monkeypatch.delenv(name)

  def find(coordinator='auto', **environment):
    for name, value in environment.items():
      monkeypatch.setenv(name, value)
    return launch.find(coordinator, 1)

  return find


def _numbers(count, index):
  return {'DPO_JAX_NUM_PROCESSES': count, 'DPO_JAX_PROCESS_ID': index}


def test_a_laptop_is_one_process(place):
  assert place() is None
  assert place('10.0.0.1:80', **_numbers('1', '0')) is None


def test_variables_and_config_name_the_coordinator(place):
  expected = process_connections.Process('10.0.0.1:80', 4, 3)
  assert place('10.0.0.1:80', **_numbers('4', '3')) == expected
  assert place(DPO_JAX_COORDINATOR='10.0.0.1:80') == expected
  assert place(None) is None


def test_slurm_sets_all_of_it(place):
  environment = {
    'SLURM_JOB_ID': '4097',
    'SLURM_STEP_NODELIST': 'node[07-09]',
    'SLURM_NTASKS': '6',
    'SLURM_PROCID': '3',
    'SLURM_LOCALID': '1',
  }
  expected = process_connections.Process('node07:61441', 6, 3, (1,))
  assert place(**environment) == expected
  assert place(SLURM_NTASKS='1') is None


@pytest.mark.parametrize(
  ('coordinator', 'environment', 'message'),
  [
    ('10.0.0.1', {}, "is '10.0.0.1'; expected host:port of process 0"),
    ('a:1', {}, 'NUM_PROCESSES must say how many processes there are; it is'),
    ('a:1', _numbers('2', 'x'), "PROCESS_ID must say which .* it is 'x'"),
    (
      'a:1',
      _numbers('2', '2'),
      'PROCESS_ID is 2, but .* is 2: expected 0 to 1',
    ),
  ],
)
def test_wrong_places(place, coordinator, environment, message):
  with pytest.raises(ValueError, match=message):
    place(coordinator, **environment)


def test_a_mesh_without_devices_of_a_process(monkeypatch):
  sharding.make_mesh(devices=2)
  monkeypatch.setattr(jax, 'process_count', lambda: 3)
  with pytest.raises(ValueError, match='none of those of processes 1, 2 of 3'):
    sharding.make_mesh(devices=2)


def test_the_error_names_processes_and_differences(monkeypatch):
  monkeypatch.setattr(processes, 'many', lambda: True)
  texts = ['"a: 1\\nb: 1"', '"a: 1\\nb: 2"', '"a: 1\\nb: 1"']
  monkeypatch.setattr(processes, '_all_gather', lambda key, text: texts)
  with pytest.raises(ValueError) as error:
    processes.agree('config', 'a: 1\nb: 1')
  assert '\n  processes 0, 2: b: 1\n  process 1: b: 2\n' in str(error.value)
  texts[1] = texts[0]
  processes.agree('config', 'a: 1\nb: 1')
