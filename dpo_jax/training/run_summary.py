"""The summary at the end of a run: first and last values, time and memory."""

import pathlib
import resource
import sys
from collections.abc import Mapping, Sequence

from dpo_jax.training import run_log

# Table -> (metric, its label).
_TABLES = {
  'held out': (
    ('eval/loss', 'loss'),
    ('eval/rewards/accuracies', 'accuracy'),
    ('eval/rewards/margins', 'reward margin'),
    ('eval/rewards/error', '|reward - rating|'),
    ('eval/logps_per_token/chosen', 'log p of chosen, nats a token'),
    ('eval/logps_per_token/rejected', 'log p of rejected, nats a token'),
    ('eval/logps/chosen', 'log p of chosen, nats in all'),
    ('eval/logps/rejected', 'log p of rejected, nats in all'),
    ('eval/logps/tokens', 'log p, nats a token'),
  ),
  'rollouts': (
    ('rollouts/reward', 'reward'),
    ('rollouts/kl', 'KL to the reference, nats in all'),
    ('rollouts/length', 'length, tokens'),
  ),
  'own samples': (
    ('samples/kl', 'KL to the reference, nats in all'),
    ('samples/length', 'length, tokens'),
    ('samples/repetition', 'repeated n-grams, share'),
    ('samples/vader', 'VADER'),
    ('samples/vader_positive', 'positive by VADER, share'),
  ),
}


def summary(
  rows: Sequence[Mapping[str, float]],
  *,
  seconds: float,
  cpu_seconds: float,
  peak_bytes: int,
  files: Mapping[str, str | pathlib.Path],
  resume_step: int | None = None,
) -> str:
  """Text: tables of first and last values, then costs and paths.

  rows: those of metrics.jsonl. seconds, cpu_seconds, peak_bytes: of this
  process, which resumed at `resume_step`. files: label -> path.
  """
  out = []
  for title, names in _TABLES.items():
    out += _table(title, names, rows)
  last = max((row['step'] for row in rows), default=0)
  since = f', from {resume_step} on in this process' if resume_step else ''
  facts = {
    'steps': f'{last}{since}',
    'time': f'{_duration(seconds)} wall, {_duration(cpu_seconds)} CPU',
    'memory': f'{peak_bytes / 1e9:.2f} GB at most',
    **files,
  }
  width = max(map(len, facts)) + 2
  out += [f'{name:{width}}{value}' for name, value in facts.items()]
  return '\n'.join(out)


def usage() -> tuple[float, int]:
  """(CPU seconds, user and system; peak memory in bytes) of this process."""
  used = resource.getrusage(resource.RUSAGE_SELF)
  unit = 1 if sys.platform == 'darwin' else 1024
  return used.ru_utime + used.ru_stime, used.ru_maxrss * unit


def _table(title, names, rows) -> list[str]:
  """The lines of a table; none if no row has any of its metrics."""
  out = []
  for name, label in names:
    having = [row for row in rows if name in row]
    if having:
      first, last = having[0], having[-1]
      cells = ''.join(f'{r[name]:>11.4f}' for r in (first, last))
      out.append(
        f'  {label:32}{cells}  {run_log.interval(last, name, "{:.4f}")}'
      )
  if not out:
    return []
  examples = [r['eval/examples'] for r in rows if 'eval/examples' in r]
  if examples and title == 'held out':
    title = f'{title}, {examples[-1]:.0f} examples'
  head = f'{title:34}{"start":>11}{"end":>11}   95 % at the end'
  return [head, *(line.rstrip() for line in out), '']


def _duration(seconds: float) -> str:
  if seconds < 120:
    return f'{seconds:.1f} s'
  if seconds < 7200:
    return f'{seconds / 60:.1f} min'
  return f'{seconds / 3600:.1f} h'
