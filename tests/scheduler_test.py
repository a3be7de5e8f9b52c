"""experiments/scheduler.py: order, cost and failure of a study's commands."""

import os
import pathlib

import pytest

from experiments import scheduler


def _job(name, code, needs=()):
  return scheduler.Job(name, ['-c', code], pathlib.Path(name), needs)


def test_jobs_run_beside_each_other_after_what_they_need(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  usage = scheduler.Usage(tmp_path / 'usage')
  # a and b end only if both run at once; c needs what they write.
  meet = (
    'import pathlib, time; pathlib.Path("{0}").touch()\n'
    'while not pathlib.Path("{1}").exists(): time.sleep(0.01)'
  )
  found = [
    _job('c', 'import os; assert os.path.exists("a")', ('a', 'b')),
    _job('a', meet.format('a', 'b')),
    _job('b', meet.format('b', 'a')),
  ]
  scheduler.run({x.name: x for x in found}, 2, usage)
  assert usage.read('c')['peak_gb'] > 0
  assert usage.read('d') == {'cpu_seconds': 0, 'peak_gb': 0.0}


def test_a_job_that_fails_ends_the_others(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  usage = scheduler.Usage(tmp_path / 'usage')
  found = [
    _job('waits', 'import time; open("waits", "w"); time.sleep(600)'),
    _job(
      'fails',
      'import os\nwhile not os.path.exists("waits"): pass\nraise SystemExit(3)',
    ),
    _job('later', 'open("later", "w")', ('fails',)),
  ]
  with pytest.raises(SystemExit, match='fails failed'):
    scheduler.run({x.name: x for x in found}, 2, usage)
  assert not pathlib.Path('later').exists()
  with pytest.raises(ChildProcessError):
    os.wait()
