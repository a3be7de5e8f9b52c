"""What is kept of a study's runs and judgements: files that are committed."""

import pathlib
from collections.abc import Collection

from dpo_jax import assets
from dpo_jax.training import metrics
from experiments import files, scheduler
from experiments.throughput import machine

DIGITS = 4
# Of held-out pairs, where a method has such.
HELD_OUT = tuple(
  name + end
  for name in ('loss', 'rewards/accuracies', 'rewards/margins')
  for end in ('', '_low', '_high')
)


def held_out(
  run: pathlib.Path, names: Collection[str]
) -> list[dict[str, float]]:
  """Each evaluation's metrics of these names; [] where there is none."""
  path = run / 'metrics.jsonl'
  rows = metrics.read_jsonl(path) if path.exists() else []
  found = []
  for row in rows:
    if 'eval/loss' in row:
      kept = {
        name: round(row[f'eval/{name}'], DIGITS)
        for name in names
        if f'eval/{name}' in row
      }
      found.append({'step': row['step'], **kept})
  return found


def keep(job: scheduler.Job, usage: scheduler.Usage) -> None:
  """Keeps the numbers of a job that has ended, if it has such.

  Of a judgement its verdict, of a run the metrics of held-out examples; beside
  them command, machine and cost.
  """
  if job.result is None:
    return
  found = {
    'command': ' '.join(['python', *job.command]),
    **usage.read(job.name),
    'machine': machine.describe(),
  }
  if job.leaves.suffix == '.json':
    found['verdict'] = assets.read_json(job.leaves)
  else:
    found['held_out'] = held_out(job.leaves.parent, HELD_OUT)
  files.write_json(job.result, found, indent=1)
