"""Tables and the plot of win rates of a scale, from results/SCALE.

  python -m experiments.hh.report --scale small --data runs/hh/data

Writes results/SCALE/win_rates.png and prints Markdown. --data: the parts that
splits.py wrote, of whose held-out pairs it says how often the longer answer is
the preferred one.
"""

import argparse
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from dpo_jax.data.sources import dialogues
from dpo_jax.evals import statistics
from experiments import win_rate_tables
from experiments.hh import pages, run, splits

PARTS = {
  'held_helpful': 'helpful, one turn',
  'held_harmless': 'harmless, one turn',
  'held_multi': 'several turns',
}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--scale', choices=pages.SCALES, default='small')
  parser.add_argument('--data', type=pathlib.Path)
  args = parser.parse_args()
  folder = run.RESULTS / args.scale
  runs = {
    path.stem: json.loads(path.read_text())
    for path in sorted(folder.glob('*.json'))
  }
  judged = win_rate_tables.read(folder)
  shown = judged, PARTS, pages.TEMPERATURES
  win_rate_tables.draw(*shown).savefig(folder / 'win_rates.png')
  made = [
    accuracies(runs),
    win_rate_tables.by_temperature(*shown),
    win_rate_tables.best_of(judged),
  ]
  if args.data:
    made.insert(1, longer(args.data))
  print('\n\n'.join('\n'.join(lines) for lines in made))


def accuracies(runs: Mapping[str, Mapping[str, Any]]) -> list[str]:
  """Markdown: held-out accuracy of each run's reward, and its cost."""
  lines = [
    '| run | held-out accuracy | CPU minutes | peak GB |',
    '|---' * 4 + '|',
  ]
  for name, result in runs.items():
    last = result['held_out'][-1]
    accuracy = ''
    if 'rewards/accuracies' in last:
      ends = (last[f'rewards/accuracies{end}'] for end in ('', '_low', '_high'))
      accuracy = win_rate_tables.interval(*ends)
    minutes = result['cpu_seconds'] / 60
    lines.append(
      f'| {name} | {accuracy} | {minutes:.0f} | {result["peak_gb"]:.1f} |'
    )
  return lines


def longer(data: pathlib.Path) -> list[str]:
  """Markdown: how often the longer answer of a held-out pair is preferred."""
  lines = ['| held-out pairs | n | the longer one is preferred |']
  lines.append('|---' * 3 + '|')
  for part in ('held_out', *PARTS):
    found = map(longer_wins, splits.read_part(data / part))
    outcomes = [x for x in found if x is not None]
    ends = statistics.wilson_interval(sum(outcomes), len(outcomes))
    cell = win_rate_tables.interval(float(np.mean(outcomes)), *ends)
    lines.append(f'| {part} | {len(outcomes)} | {cell} |')
  return lines


def longer_wins(dialogue: splits.Dialogue) -> bool | None:
  """Whether the preferred last answer has more characters; None: as many."""
  a, b = (
    len(text.rpartition(dialogues.ASSISTANT)[2])
    for text in (dialogue.chosen, dialogue.rejected)
  )
  return None if a == b else a > b


if __name__ == '__main__':
  main()
