"""The frontier plot and the tables of a scale, from results/SCALE.

  python -m experiments.imdb.report --scale tiny

Writes results/SCALE/frontier.png and prints Markdown.
"""

import argparse
import json
import re
from collections.abc import Mapping
from typing import Any

from matplotlib import figure

from experiments.imdb import ceiling, frontiers, pages, results

# Okabe and Ito's palette.
COLOURS = {
  'dpo': '#0072B2',
  'ppo': '#D55E00',
  'ppo_rm': '#E69F00',
  'rloo': '#CC79A7',
  'online_dpo': '#56B4E9',
  'unlikelihood': '#009E73',
  'preferred_ft': '#666666',
}
LABELS = {
  'dpo': 'DPO',
  'ppo': 'PPO, true reward',
  'ppo_rm': 'PPO, learned reward',
  'rloo': 'RLOO, true reward',
  'online_dpo': 'online DPO, true reward',
  'unlikelihood': 'unlikelihood',
  'preferred_ft': 'Preferred-FT',
}
_NAME = re.compile(
  r'(?P<method>[a-z_]+?)(_(?P<value>[0-9.e+-]+))?_s(?P<seed>\d+)'
)
Runs = dict[str, dict[str, list[dict[str, Any]]]]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--scale', choices=pages.SCALES, default='tiny')
  scale = parser.parse_args().scale
  runs = by_method(results.read(scale))
  path = results.path_of(scale, 'ceiling')
  bounds = json.loads(path.read_text()) if path.exists() else None
  draw(runs, bounds, scale).savefig(results.RESULTS / scale / 'frontier.png')
  print('\n'.join(table(runs)))


def by_method(found: Mapping[str, dict[str, Any]]) -> Runs:
  """method -> setting -> results of the seeds."""
  runs = {}
  for name, result in found.items():
    parts = _NAME.fullmatch(name)
    settings = runs.setdefault(parts['method'], {})
    settings.setdefault(parts['value'] or '', []).append(result)
  return {m: runs[m] for m in COLOURS if m in runs}


def table(runs: Runs) -> list[str]:
  """Markdown: each method's reward at some KLs, and its difference to DPO's."""
  head = [f'KL {kl:g}' for kl in frontiers.KLS]
  lines = ['| method | runs | ' + ' | '.join(head) + ' |']
  lines.append('|---' * (len(head) + 2) + '|')
  settings = {
    method: {
      value: [frontiers.points_of(x) for x in seeds]
      for value, seeds in of_method.items()
    }
    for method, of_method in runs.items()
  }
  for method, of_method in settings.items():
    cells = [_cell(of_method, kl) for kl in frontiers.KLS]
    count = sum(map(len, of_method.values()))
    lines.append(f'| {LABELS[method]} | {count} | ' + ' | '.join(cells) + ' |')
  for method, of_method in settings.items():
    if method != 'dpo' and 'dpo' in settings:
      cells = [
        _difference(of_method, settings['dpo'], kl) for kl in frontiers.KLS
      ]
      lines.append(f'| {LABELS[method]} - DPO | | ' + ' | '.join(cells) + ' |')
  return lines


def _cell(settings, kl: float) -> str:
  found = frontiers.at_kl(settings, kl)
  if found is None:
    return ''
  mean, low, high = frontiers.bootstrap(found.rewards_SxU)
  seeds = ', '.join(f'{x:.2f}' for x in found.of_seeds)
  return f'{mean:.2f} [{low:.2f}, {high:.2f}] ({seeds})'


def _difference(first, second, kl: float) -> str:
  a, b = (frontiers.at_kl(x, kl) for x in (first, second))
  if a is None or b is None:
    return ''
  mean, low, high = frontiers.bootstrap(a.rewards_SxU, b.rewards_SxU)
  return f'{mean:+.2f} [{low:+.2f}, {high:+.2f}]'


def draw(
  runs: Runs, bounds: Mapping[str, Any] | None, scale: str
) -> figure.Figure:
  """Every evaluation of every run, a line a run, and what bounds them."""
  made = figure.Figure((8.4, 5.6), dpi=130, layout='constrained')
  axes = made.subplots()
  if bounds:
    kept = [
      row
      for row in bounds['ceiling']
      if row['sample_size'] >= ceiling.LEAST_SAMPLE_SIZE
    ]
    kls, best = ([row[x] for row in kept] for x in ('kl', 'reward'))
    axes.plot(kls, best, color='black', lw=1.4, ls='--', label='ceiling')
    kls, best = (
      [row[x] for row in bounds['best_of_n']] for x in ('kl_bound', 'mean')
    )
    axes.plot(
      kls, best, color='black', lw=1, ls=':', marker='x', label='best of N'
    )
  for method, settings in runs.items():
    label = LABELS[method]
    for seeds in settings.values():
      for result in seeds:
        points = frontiers.points_of(result)
        axes.plot(
          [p.kl_U.mean() for p in points],
          [p.reward_U.mean() for p in points],
          color=COLOURS[method],
          marker='o',
          ms=2.5,
          lw=0.7,
          alpha=0.8,
          label=label,
        )
        label = None
  axes.set_xlabel('KL(policy, reference) of a completion, nats')
  axes.set_ylabel('mean reward r')
  axes.set_title(f'Every evaluation of every run, scale {scale!r}', fontsize=10)
  axes.grid(lw=0.3)
  axes.legend(fontsize=8)
  return made


if __name__ == '__main__':
  main()
