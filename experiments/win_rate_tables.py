"""Tables and plots of win rates, from the results of a study's judgements."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import figure

# Okabe and Ito's palette.
COLOURS = ('#666666', '#0072B2', '#56B4E9', '#009E73', '#E69F00', '#D55E00')
# run -> part -> result
Judged = dict[str, dict[str, dict[str, Any]]]


def read(folder: pathlib.Path) -> Judged:
  """The judgements in a folder of results."""
  found = {}
  for path in sorted((folder / 'judged').glob('*/*.json')):
    result = json.loads(path.read_text())
    found.setdefault(path.parent.name, {})[path.stem] = result
  return found


def interval(mean: float, low: float, high: float) -> str:
  """A mean with the ends of its 95 % interval."""
  return f'{mean:.3f} [{low:.3f}, {high:.3f}]'


def by_temperature(
  judged: Judged, parts: Mapping[str, str], temperatures: Sequence[float]
) -> list[str]:
  """Markdown: win rates against the data's answers.

  parts: those of the prompts, and what they are called.
  """
  head = ' | '.join(f'T = {t:g}' for t in temperatures)
  lines = [f'| run | prompts | n | {head} | words, of the data |']
  lines.append('|---' * (len(temperatures) + 4) + '|')
  for name, of_run in judged.items():
    for part, label in parts.items():
      groups = of_run.get(part, {}).get('verdict', {}).get('groups')
      if groups:
        cells = [_rate(groups[f'T={t:g}']) for t in temperatures]
        last = groups[f'T={temperatures[-1]:g}']
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
  lines = ['| best of | n | win rate | words, of the data |', '|---' * 4 + '|']
  found = judged.get('best_of', {})
  for count in sorted(found, key=int):
    (group,) = found[count]['verdict']['groups'].values()
    lines.append(
      f'| {count} | {group["prompts"]} | {_rate(group)} | '
      f'{group["words_a"]:.0f}, {group["words_b"]:.0f} |'
    )
  return lines


def draw(
  judged: Judged, parts: Mapping[str, str], temperatures: Sequence[float]
) -> figure.Figure:
  """Win rates by temperature, a panel for each kind of prompts."""
  drawn = figure.Figure(figsize=(11, 4), layout='constrained')
  for axes, (part, label) in zip(
    drawn.subplots(1, len(parts), sharey=True, squeeze=False)[0], parts.items()
  ):
    found = {n: p[part] for n, p in judged.items() if part in p}
    _panel(axes, found, temperatures)
    axes.set_title(label)
  return drawn


def _panel(axes, results, temperatures: Sequence[float]) -> None:
  axes.axhline(0.5, color='black', linewidth=0.8, linestyle=':')
  for i, (name, result) in enumerate(results.items()):
    groups = result['verdict']['groups']
    found = [groups[f'T={t:g}'] for t in temperatures]
    rates = np.array([g['win_rate'] for g in found])
    ends = np.array([[g['low'] for g in found], [g['high'] for g in found]])
    at = np.array(temperatures) + 0.012 * (i - len(results) / 2)
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
    xlabel='temperature',
    ylabel="win rate against the data's answers",
    ylim=(0, 1),
  )
  if results:
    axes.legend(fontsize=7)
