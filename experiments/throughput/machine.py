"""What a measurement was made on, and who else was using it (Linux)."""

import datetime
import importlib.metadata
import os
import pathlib
import platform
import subprocess
import sys

PACKAGES = ('jax', 'jaxlib', 'numpy', 'torch', 'transformers', 'trl')


def describe() -> dict:
  """Processor, memory, versions, commit, date and load, for a result file."""
  cpuinfo = pathlib.Path('/proc/cpuinfo').read_text()
  models = [x for x in cpuinfo.splitlines() if x.startswith('model name')]
  memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  return {
    'cpu': models[0].partition(':')[2].strip() if models else 'unknown',
    'cores': len(os.sched_getaffinity(0)),
    'memory_gb': round(memory / 1e9, 1),
    'load': os.getloadavg()[0],
    'python': platform.python_version(),
    'versions': _versions(),
    'commit': _git('rev-parse', 'HEAD') or 'none',
    'uncommitted_changes': bool(_git('status', '--porcelain')),
    'date': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
  }


def _versions() -> dict[str, str]:
  """Of those of PACKAGES that are installed."""
  found = {x.name: x.version for x in importlib.metadata.distributions()}
  return {name: found[name] for name in PACKAGES if name in found}


def command(module: str) -> str:
  """The command line of this process, run as `module`."""
  return ' '.join(['python -m', module, *sys.argv[1:]])


def _git(*args: str) -> str:
  done = subprocess.run(['git', *args], capture_output=True, text=True)
  return done.stdout.strip() if not done.returncode else ''


class Steal:
  """The share of the machine that its host gave to others, of an interval.

  vmstat's `st` column, from the counters that it reads.
  """

  def __init__(self):
    self._before = self._ticks()

  def share(self) -> float:
    """Since the object was made; 0.0 where the host does not say."""
    steal, total = (b - a for a, b in zip(self._before, self._ticks()))
    return steal / total if total else 0.0

  def _ticks(self) -> tuple[int, int]:
    with open('/proc/stat', encoding='ascii') as f:
      # user nice system idle iowait irq softirq steal; guests are in user.
      ticks = [int(x) for x in f.readline().split()[1:9]]
    return ticks[7], sum(ticks)
