"""What runs of page.py got of their held-out examples.

  python -m experiments.rewards.report runs/rewards/hh runs/rewards/hh_dpo ...

A run is a directory VARIANT that the commit which is checked out here has made.
Writes results/VARIANT.json, and prints a table of all results there.
"""

import argparse
import json
import pathlib

from dpo_jax import run_dir
from experiments.throughput import machine

RESULTS = pathlib.Path(__file__).parent / 'results'
METRICS = ('loss', 'rewards/accuracies', 'rewards/margins', 'rewards/ties')


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('runs', nargs='*', type=pathlib.Path)
  args = parser.parse_args()
  described = machine.describe()
  RESULTS.mkdir(exist_ok=True)
  for run in args.runs:
    found = _result(run) | {'machine': described}
    path = RESULTS / f'{run.name}.json'
    path.write_text(json.dumps(found, indent=1) + '\n')
  print('| run | held out | accuracy, start | accuracy, end | loss, end |')
  print('|---' * 5 + '|')
  for path in sorted(RESULTS.glob('*.json')):
    found = json.loads(path.read_text())
    if 'held_out' in found:  # The bag of words has none.
      print(_line(path.stem, found['held_out']))


def _result(folder: pathlib.Path) -> dict:
  """What is kept of a run's directory."""
  run = run_dir.find(folder)
  if run is None or not run.ended:
    raise ValueError(f'{str(folder)!r} is no run that has ended.')
  kept = {
    f'eval/{name}{end}': name + end
    for name in METRICS
    for end in ('', '_low', '_high')
  } | {'step': 'step', 'eval/examples': 'examples'}
  return {
    'command': (
      'python -m dpo_jax.train --config experiments/rewards/page.py:'
      f'{folder.name} --workdir runs/rewards/{folder.name}'
    ),
    'seed': run.config['seed'],
    'held_out': [
      {kept[name]: row[name] for name in row if name in kept}
      for row in run.rows()
      if 'eval/loss' in row
    ],
  }


def _line(name: str, rows: list[dict]) -> str:
  count, loss = (rows[-1][x] for x in ('examples', 'loss'))
  start, end = (_accuracy(rows[i]) for i in (0, -1))
  return f'| {name} | {count} | {start} | {end} | {loss:.3f} |'


def _accuracy(row: dict) -> str:
  mean, low, high = (
    row[f'rewards/accuracies{end}'] for end in ('', '_low', '_high')
  )
  return f'{mean:.3f} [{low:.3f}, {high:.3f}]'


if __name__ == '__main__':
  main()
