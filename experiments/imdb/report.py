"""The frontier plots and the tables of a scale, from results/SCALE.

  python -m experiments.imdb.report --scale tiny

Writes frontier.png and tuning.png there and prints Markdown.
"""

import argparse
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import figure

from experiments.imdb import ceiling, frontiers, places, results, tuning

# Okabe and Ito's palette.
COLOURS = {
  'dpo': '#0072B2',
  'dpo_sure': '#000000',
  'dpo_far': '#7FB8D9',
  'ppo': '#D55E00',
  'ppo_rm': '#E69F00',
  'ppo_far': '#EAAF80',
  'ppo_rm_far': '#F2CF80',
  'rloo': '#CC79A7',
  'online_dpo': '#56B4E9',
  'unlikelihood': '#009E73',
  'preferred_ft': '#666666',
}
LABELS = {
  'dpo': 'DPO',
  'dpo_sure': 'DPO, sure labels',
  'dpo_far': 'DPO, tuned at 4 nats',
  'ppo': 'PPO, true reward',
  'ppo_rm': 'PPO, learned reward',
  'ppo_far': 'PPO, true reward, tuned at 4 nats',
  'ppo_rm_far': 'PPO, learned reward, tuned at 4 nats',
  'rloo': 'RLOO, true reward',
  'online_dpo': 'online DPO, true reward',
  'unlikelihood': 'unlikelihood',
  'preferred_ft': 'Preferred-FT',
}
# Of the KL, in nats.
TICKS = (0, 0.5, 1, 2, 4, 8, 16, 32, 64)
_NAME = re.compile(r'(?P<method>[a-z_]+?)(_(?P<value>[0-9.e+-]+))?')
# method -> setting -> block -> result.
Runs = dict[str, dict[str, dict[int, dict[str, Any]]]]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--scale', choices=places.SCALES, default='tiny')
  scale = parser.parse_args().scale
  folder = results.RESULTS / scale
  runs, tuned = by_method(results.read(scale)), tuning.read(scale)
  for name, shown, bounds, title in (
    ('frontier', runs, bounds_of(scale), 'final runs'),
    ('tuning', tuned, [], 'tuning, each learning rate a line'),
  ):
    made = draw(shown, bounds, f'Every evaluation, scale {scale!r}: {title}')
    made.savefig(folder / f'{name}.png')
  for made in (
    table(runs),
    shares(runs),
    ends(runs),
    tried(scale),
    costs(scale, runs),
  ):
    print('\n'.join([*made, '']))


def bounds_of(scale: str) -> list[dict[str, Any]]:
  """What ceiling.py found, of each block."""
  paths = sorted((results.RESULTS / scale).glob('*/ceiling.json'))
  return [json.loads(path.read_text()) for path in paths]


def by_method(found: Mapping[int, Mapping[str, dict[str, Any]]]) -> Runs:
  """From block -> name -> result, in the order of LABELS."""
  runs = {}
  for block, of_block in found.items():
    for name, result in of_block.items():
      parts = _NAME.fullmatch(name)
      settings = runs.setdefault(parts['method'], {})
      settings.setdefault(parts['value'] or '', {})[block] = result
  return {m: runs[m] for m in LABELS if m in runs}


def points_of(runs: Runs) -> dict[str, dict[str, dict[int, list]]]:
  """method -> what `frontiers.at_kl` takes."""
  return {
    method: {
      value: {b: frontiers.points_of(x) for b, x in blocks.items()}
      for value, blocks in settings.items()
    }
    for method, settings in runs.items()
  }


def table(runs: Runs) -> list[str]:
  """Markdown: each method's reward at some KLs, and its difference to DPO's."""
  head = [f'KL {kl:g}' for kl in frontiers.KLS]
  lines = ['| method | runs | ' + ' | '.join(head) + ' |']
  lines.append('|---' * (len(head) + 2) + '|')
  points = points_of(runs)
  at = {
    (method, kl): frontiers.at_kl(settings, kl)
    for method, settings in points.items()
    for kl in frontiers.KLS
  }
  for method, settings in points.items():
    cells = [_cell(at[method, kl]) for kl in frontiers.KLS]
    count = sum(map(len, settings.values()))
    lines.append(f'| {LABELS[method]} | {count} | ' + ' | '.join(cells) + ' |')
  for method in points:
    if method != 'dpo' and 'dpo' in points:
      cells = [
        _difference(at[method, kl], at['dpo', kl]) for kl in frontiers.KLS
      ]
      lines.append(f'| {LABELS[method]} - DPO | | ' + ' | '.join(cells) + ' |')
  return lines


def _cell(found: frontiers.AtKl | None) -> str:
  if found is None:
    return ''
  mean, low, high = frontiers.bootstrap(found.rewards_SxU)
  each = ', '.join(f'{x.mean():.2f}' for x in found.rewards.values())
  return f'{mean:.2f} [{low:.2f}, {high:.2f}] ({each})'


def _difference(a: frontiers.AtKl | None, b: frontiers.AtKl | None) -> str:
  found = a.minus(b) if a and b else None
  if found is None:
    return ''
  mean, low, high = frontiers.bootstrap(found)
  return f'{mean:+.2f} [{low:+.2f}, {high:+.2f}]'


def shares(runs: Runs) -> list[str]:
  """Markdown: how many points of each method a point of DPO dominates.

  Both of one block; and how many of DPO's the method's dominate.
  """
  points = points_of(runs)
  lines = [
    '| method | its points that DPO dominates | of DPO, that it dominates |',
    '|---|---|---|',
  ]

  def of_block(method, block):
    found = (x.get(block, []) for x in points[method].values())
    return list(itertools.chain.from_iterable(found))

  def count(method, other):
    blocks = set().union(*points[method].values())
    found = [
      frontiers.dominated(of_block(method, b), of_block(other, b))
      for b in blocks & set().union(*points[other].values())
    ]
    return '{} of {}'.format(*map(sum, zip(*found))) if found else ''

  for method in points if 'dpo' in points else ():
    if method != 'dpo':
      cells = count(method, 'dpo'), count('dpo', method)
      lines.append(f'| {LABELS[method]} | {cells[0]} | {cells[1]} |')
  return lines


def ends(runs: Runs) -> list[str]:
  """Markdown: the last evaluation of each setting, a mean over blocks."""
  names = (
    'kl', 'reward', 'positive', 'labels_2', 'vader', 'length', 'ended',
    'repetition',
  )  # fmt: skip
  lines = ['| run | blocks | ' + ' | '.join(names) + ' |']
  lines.append('|---' * (len(names) + 2) + '|')
  for method, settings in runs.items():
    for value, blocks in settings.items():
      last = [x['points'][-1] for x in blocks.values()]
      cells = [f'{np.mean([np.mean(p[n]) for p in last]):.2f}' for n in names]
      lines.append(
        f'| {LABELS[method]} {value} | {len(blocks)} | '
        + ' | '.join(cells)
        + ' |'
      )
  return lines


def tried(scale: str) -> list[str]:
  """Markdown: what tuning tried, and in bold what it chose."""
  lines = ['| method | learning rate | r at KL 1 | r, KL at the end | CPU s |']
  lines.append('|---' * 5 + '|')
  for method, choice in tuning.read_choices(scale).items():
    for x in choice['tried']:
      peak, at_kl = f'{x["schedule.peak"]:g}', x['reward_at_kl']
      if x['schedule.peak'] == choice['chosen']['schedule.peak']:
        peak = f'**{peak}**'
      lines.append(
        f'| {LABELS[method]} | {peak} | '
        f'{"" if at_kl is None else f"{at_kl:.2f}"} | '
        f'{x["reward_at_end"]:.2f}, {x["kl_at_end"]:.2f} | '
        f'{x["cpu_seconds"]} |'
      )
  return lines


def costs(scale: str, runs: Runs) -> list[str]:
  """Markdown: CPU minutes and peak memory of stages and of methods' runs.

  Means over blocks and, of a method, over its settings.
  """
  found = {}
  for path in sorted((results.RESULTS / scale).glob('[0-9]*/stages.json')):
    for stage, used in json.loads(path.read_text()).items():
      found.setdefault(f'stage {stage}', []).append(used)
  for method, settings in runs.items():
    found[LABELS[method]] = [x for b in settings.values() for x in b.values()]
  lines = ['| | runs | CPU minutes | peak GB |', '|---|---|---|---|']
  for name, used in found.items():
    minutes = np.mean([x['cpu_seconds'] for x in used]) / 60
    peak = max(x['peak_gb'] for x in used)
    lines.append(f'| {name} | {len(used)} | {minutes:.1f} | {peak:.1f} |')
  return lines


def draw(
  runs: Runs, bounds: Sequence[Mapping[str, Any]], title: str
) -> figure.Figure:
  """Every evaluation of every run, a line a run, and what bounds them.

  KL is drawn by its root: for a normal reward the ceiling is a straight line. A
  run's end has its setting beside it.
  """
  made = figure.Figure((8.4, 5.6), dpi=130, layout='constrained')
  axes = made.subplots()
  for i, of_block in enumerate(bounds):
    kept = [
      row
      for row in of_block['ceiling']
      if row['sample_size'] >= ceiling.LEAST_SAMPLE_SIZE
    ]
    for rows, kl, reward, label, style in (
      (kept, 'kl', 'reward', 'ceiling', '--'),
      (of_block['best_of_n'], 'kl_bound', 'mean', 'best of N', ':'),
    ):
      axes.plot(
        *([row[x] for row in rows] for x in (kl, reward)),
        color='black',
        lw=1.2,
        ls=style,
        label=None if i else label,
      )
  for method, settings in runs.items():
    label = LABELS[method]
    for value, blocks in settings.items():
      for result in blocks.values():
        points = frontiers.points_of(result)
        kls, rewards = (
          [x.mean() for x in xs]
          for xs in zip(*((p.kl_U, p.reward_U) for p in points))
        )
        axes.annotate(f' {value}', (kls[-1], rewards[-1]), fontsize=6)
        axes.plot(
          kls,
          rewards,
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
  axes.set_title(title, fontsize=10)
  axes.set_xscale('function', functions=(_root, np.square))
  axes.set_xlim(left=0)
  axes.set_xticks(TICKS, [f'{x:g}' for x in TICKS])
  axes.grid(lw=0.3)
  if runs:
    axes.legend(fontsize=8)
  return made


def _root(kl: np.ndarray) -> np.ndarray:
  return np.sqrt(np.maximum(kl, 0))


if __name__ == '__main__':
  main()
