"""A SIGTERM stops a run, in all of its processes at once."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import textwrap
import threading

import pytest

from dpo_jax.training import preemption

ROOT = pathlib.Path(__file__).parent.parent.parent


def _start(script, *args):
  """A process that runs `script`."""
  script = 'import sys\n' + textwrap.dedent(script)
  return subprocess.Popen(
    [sys.executable, '-c', script, *map(str, args)],
    env=dict(os.environ, PYTHONPATH=str(ROOT), JAX_PLATFORMS='cpu'),
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def test_sigterm_sets_a_flag_and_is_given_back():
  seen = []
  before = signal.signal(signal.SIGTERM, lambda *_: seen.append(1))
  try:
    for _ in range(2):
      with preemption.sigterm() as stopping:
        assert not stopping()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopping() and not seen
    os.kill(os.getpid(), signal.SIGTERM)
    assert seen
  finally:
    signal.signal(signal.SIGTERM, before)


def test_a_second_sigterm_ends_the_process():
  process = _start("""
    import time
    from dpo_jax.training import preemption
    with preemption.sigterm() as stopping:
      print('ready', flush=True)
      while not stopping():
        time.sleep(0.01)
      print('stopping', flush=True)
      sys.stdin.read()
  """)
  assert process.stdout.readline() == 'ready\n'
  process.terminate()
  assert process.stdout.readline() == 'stopping\n'
  process.terminate()
  assert process.wait() == -signal.SIGTERM


def test_outside_of_the_main_thread_nothing_is_handled(caplog):
  before, seen = signal.getsignal(signal.SIGTERM), []

  def run():
    with preemption.sigterm() as stopping:
      seen.append((stopping(), signal.getsignal(signal.SIGTERM), stopping()))

  thread = threading.Thread(target=run)
  thread.start()
  thread.join()
  assert seen == [(False, before, False)]
  (text,) = [r.getMessage() for r in caplog.records if 'SIGTERM' in r.msg]
  assert 'outside of the main thread' in text and 'not handled' in text


# Process 1 gets a SIGTERM before its third call. Process 0 runs in a thread,
# where it could get none.
PROCESS = """
  import json, os, signal, threading
  import jax
  from dpo_jax.training import preemption

  port, index = sys.argv[1], int(sys.argv[2])
  jax.config.update('jax_num_cpu_devices', 2)
  jax.distributed.initialize(f'127.0.0.1:{port}', 2, index)

  def run():
    seen = []
    with preemption.sigterm() as stopping:
      for call in range(6):
        if (index, call) == (1, 2):
          os.kill(os.getpid(), signal.SIGTERM)
        seen.append(stopping())
    print(json.dumps(seen), flush=True)

  if index:
    run()
  else:
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
"""


@pytest.mark.long
def test_all_processes_stop_at_the_same_call():
  with socket.create_server(('127.0.0.1', 0)) as server:
    port = server.getsockname()[1]
  both = [_start(PROCESS, port, index) for index in range(2)]
  try:
    outputs = [process.communicate(timeout=120) for process in both]
  finally:
    for process in both:
      process.kill()
  assert not any(process.returncode for process in both), outputs
  seen = [json.loads(out.splitlines()[-1]) for out, _ in outputs]
  assert seen == [[False, False, False, True, True, True]] * 2
