"""A worker's end of the pipes to run.py, and what both workers hold fixed.

A worker prepares, says that it is ready, then blocks on stdin; to each line
'step' it makes one step and answers with one line of JSON. While it blocks it
uses no processor, so that the other side can be timed in the same minutes.
"""

import hashlib
import json
import os
import resource
import sys
import time

BETA = 0.1
LEARNING_RATE = 1e-6
MAX_GRAD_NORM = 1.0


class Channel:
  """Lines to and from run.py, and the clock of the step between them."""

  def __init__(self):
    # What libraries print must not end up between the answers.
    self._out = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)
    self._answered_cpu = time.process_time()

  def ready(self, **facts) -> None:
    """Answers that everything before the first step is done."""
    self._answer({'ready': True, **facts})

  def wait(self) -> None:
    """Blocks until the next step may begin; exits when there is none."""
    if sys.stdin.readline().strip() != 'step':
      raise SystemExit
    self._cpu, self._wall = time.process_time(), time.perf_counter()

  def stop(self) -> None:
    """Takes the times of the step: all of the process's threads count."""
    wall, cpu = time.perf_counter(), time.process_time()
    self._times = {
      'wall_s': wall - self._wall,
      'cpu_s': cpu - self._cpu,
      # What its threads burned between the steps: spinning, if not near 0.
      'idle_cpu_s': self._cpu - self._answered_cpu,
    }

  def report(self, **facts) -> None:
    """Answers with the times of the step that was stopped, and `facts`."""
    self._answer({**self._times, **facts})

  def _answer(self, content: dict) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    line = json.dumps({**content, 'peak_rss_gb': peak * 1024 / 1e9})
    print(line, file=self._out, flush=True)
    self._answered_cpu = time.process_time()


def options() -> dict:
  """What run.py passes: one JSON object as the only argument."""
  return json.loads(sys.argv[1])


def digest(prompt, chosen, rejected) -> str:
  """A short name of a pair's tokens, to compare both sides' by."""
  ids = [[int(i) for i in part] for part in (prompt, chosen, rejected)]
  return hashlib.sha256(repr(ids).encode()).hexdigest()[:12]
