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
from matplotlib import figure

from dpo_jax.data.sources import dialogues
from dpo_jax.evals import statistics
from experiments.hh import pages, run, splits

# Okabe and Ito's palette.
COLOURS = ('#666666', '#0072B2', '#56B4E9', '#009E73', '#E69F00', '#D55E00')
PARTS = {
  'held_helpful': 'helpful, one turn',
  'held_harmless': 'harmless, one turn',
  'held_multi': 'several turns',
}
# run -> part -> result
Judged = dict[str, dict[str, dict[str, Any]]]


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
  judged = read_judged(folder)
  draw(judged).savefig(folder / 'win_rates.png')
  made = [accuracies(runs), win_rates(judged), best_of(judged)]
  if args.data:
    made.insert(1, longer(args.data))
  print('\n\n'.join('\n'.join(lines) for lines in made))


def read_judged(folder: pathlib.Path) -> Judged:
  """The judgements in a folder of results."""
  found = {}
  for path in sorted((folder / 'judged').glob('*/*.json')):
    result = json.loads(path.read_text())
    found.setdefault(path.parent.name, {})[path.stem] = result
  return found


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
      accuracy = interval(*ends)
    minutes = result['cpu_seconds'] / 60
    lines.append(
      f'| {name} | {accuracy} | {minutes:.0f} | {result["peak_gb"]:.1f} |'
    )
  return lines


def interval(mean: float, low: float, high: float) -> str:
  """A mean with the ends of its 95 % interval."""
  return f'{mean:.3f} [{low:.3f}, {high:.3f}]'


def longer(data: pathlib.Path) -> list[str]:
  """Markdown: how often the longer answer of a held-out pair is preferred."""
  lines = ['| held-out pairs | n | the longer one is preferred |']
  lines.append('|---' * 3 + '|')
  for part in ('held_out', *PARTS):
    found = map(longer_wins, splits.read_part(data / part))
    outcomes = [x for x in found if x is not None]
    ends = statistics.wilson_interval(sum(outcomes), len(outcomes))
    cell = interval(float(np.mean(outcomes)), *ends)
    lines.append(f'| {part} | {len(outcomes)} | {cell} |')
  return lines


def longer_wins(dialogue: splits.Dialogue) -> bool | None:
  """Whether the preferred last answer has more characters; None: as many."""
  a, b = (
    len(text.rpartition(dialogues.ASSISTANT)[2])
    for text in (dialogue.chosen, dialogue.rejected)
  )
  return None if a == b else a > b


def win_rates(judged: Judged) -> list[str]:
  """Markdown: win rates against the chosen answers, by temperature."""
  head = ' | '.join(f'T = {t:g}' for t in pages.TEMPERATURES)
  lines = [f'| run | prompts | n | {head} | words, chosen ones |']
  lines.append('|---' * (len(pages.TEMPERATURES) + 4) + '|')
  for name, parts in judged.items():
    for part, label in PARTS.items():
      groups = parts.get(part, {}).get('verdict', {}).get('groups')
      if groups:
        cells = [_rate(groups[f'T={t:g}']) for t in pages.TEMPERATURES]
        last = groups[f'T={pages.TEMPERATURES[-1]:g}']
        words = f'{last["words_a"]:.0f}, {last["words_b"]:.0f}'
        lines.append(
          f'| {name} | {label} | {last["prompts"]} | '
          + ' | '.join(cells)
          + f' | {words} |'
        )
  return lines


def _rate(group: Mapping[str, float]) -> str:
  return interval(*(group[name] for name in ('win_rate', 'low', 'high')))


def best_of(judged: Judged) -> list[str]:
  """Markdown: win rates of the best of N of the reference's answers."""
  lines = ['| best of | n | win rate | words, chosen ones |', '|---' * 4 + '|']
  found = judged.get('best_of', {})
  for count in sorted(found, key=int):
    (group,) = found[count]['verdict']['groups'].values()
    lines.append(
      f'| {count} | {group["prompts"]} | {_rate(group)} | '
      f'{group["words_a"]:.0f}, {group["words_b"]:.0f} |'
    )
  return lines


def draw(judged: Judged) -> figure.Figure:
  """Win rates by temperature, a panel for each kind of prompts."""
  drawn = figure.Figure(figsize=(11, 4), layout='constrained')
  for axes, (part, label) in zip(
    drawn.subplots(1, len(PARTS), sharey=True), PARTS.items()
  ):
    _panel(axes, {n: p[part] for n, p in judged.items() if part in p}, label)
  return drawn


def _panel(axes, results: Mapping[str, Mapping[str, Any]], label: str) -> None:
  axes.axhline(0.5, color='black', linewidth=0.8, linestyle=':')
  for i, (name, result) in enumerate(results.items()):
    groups = result['verdict']['groups']
    found = [groups[f'T={t:g}'] for t in pages.TEMPERATURES]
    rates = np.array([g['win_rate'] for g in found])
    ends = np.array([[g['low'] for g in found], [g['high'] for g in found]])
    at = np.array(pages.TEMPERATURES) + 0.012 * (i - len(results) / 2)
    axes.errorbar(
      at,
      rates,
      np.abs(ends - rates),
      label=name,
      color=COLOURS[i % len(COLOURS)],
      marker='o',
      markersize=4,
      capsize=2,
    )
  axes.set(
    title=label,
    xlabel='temperature',
    ylabel='win rate against the chosen answers',
    ylim=(0, 1),
  )
  if results:
    axes.legend(fontsize=7)


if __name__ == '__main__':
  main()
