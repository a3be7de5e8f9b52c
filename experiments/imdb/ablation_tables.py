"""Tables of the ablations and probes of a scale, from results/SCALE.

  python -m experiments.imdb.ablation_tables --scale tiny

Prints Markdown. Values are means over blocks; in brackets those of each block.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.imdb import frontiers, places, results

# ablation -> run -> block -> result
Ablations = dict[str, dict[str, dict[int, dict[str, Any]]]]
KLS = (1.0, 2.0)
PLAIN = 'plain'


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--scale', choices=places.SCALES, default='tiny')
  found = read(parser.parse_args().scale)
  probes = found.pop('probes', {})
  plain = found.get(PLAIN, {})
  for name, runs in found.items():
    if name != PLAIN:
      print('\n'.join([f'### {name}', '', *ablation(plain | runs), '']))
  print('\n'.join([*probed(probes), '', *own_pairs(probes)]))


def read(scale: str) -> Ablations:
  """The results in the folders of blocks; 'probes' are among them."""
  found = {}
  for path in sorted((results.RESULTS / scale).glob('[0-9]*/*/*.json')):
    runs = found.setdefault(path.parent.name, {})
    block = int(path.parent.parent.name)
    runs.setdefault(path.stem, {})[block] = json.loads(path.read_text())
  return found


def _cell(values: Sequence[float | None], digits: int = 2) -> str:
  """The mean, and each block's value where there are several."""
  if any(v is None for v in values):
    return ''
  each = ', '.join(f'{v:.{digits}f}' for v in values)
  mean = f'{np.mean(values):.{digits}f}'
  return f'{mean} ({each})' if len(values) > 1 else mean


def _held_out(result: Mapping[str, Any], name: str, change: bool = False):
  """The last value of a held-out metric, or its change since the start."""
  rows = [row for row in result['held_out'] if name in row]
  if not rows:
    return None
  return rows[-1][name] - change * rows[0][name]


def ablation(runs: Mapping[str, Mapping[int, dict[str, Any]]]) -> list[str]:
  """Markdown: a row for each run."""
  lines = [
    '| run | KL at the end | r at the end | '
    + ' | '.join(f'r at KL {kl:g}' for kl in KLS)
    + ' | accuracy | log p(chosen), change | length | repetition |',
    '|---' * (len(KLS) + 7) + '|',
  ]
  for name, blocks in runs.items():
    every = list(blocks.values())
    last = [x['points'][-1] for x in every]
    cells = [
      _cell([float(np.mean(p['kl'])) for p in last]),
      _cell([float(np.mean(p['reward'])) for p in last]),
      *(_cell([frontiers.reward_at_kl(x, kl) for x in every]) for kl in KLS),
      _cell([_held_out(x, 'rewards/accuracies') for x in every]),
      _cell([_held_out(x, 'logps/chosen', change=True) for x in every], 1),
      _cell([p['length'] for p in last], 1),
      _cell([p['repetition'] for p in last], 3),
    ]
    lines.append(f'| {name} | ' + ' | '.join(cells) + ' |')
  return lines


def probed(runs: Mapping[str, Mapping[int, dict[str, Any]]]) -> list[str]:
  """Markdown: reward and repetition of each run's sets of samples."""
  lines = [
    '| run | prompts | temperature | seeds | r | VADER | repetition |',
    '|---' * 7 + '|',
  ]
  for name, blocks in runs.items():
    sets = {}
    for result in blocks.values():
      for x in result['samples']:
        sets.setdefault((x['prompts'], x['temperature']), []).append(x)
    for (prompts, temperature), found in sets.items():
      cells = [
        _cell([float(np.mean(x['reward'])) for x in found]),
        _cell([x['vader'] for x in found]),
        _cell([x['repetition'] for x in found], 3),
      ]
      lines.append(
        f'| {name} | {prompts} | {temperature:g} | {len(found)} | '
        + ' | '.join(cells)
        + ' |'
      )
  return lines


def own_pairs(runs: Mapping[str, Mapping[int, dict[str, Any]]]) -> list[str]:
  """Markdown: how often two rewards order a policy's samples as r does."""
  lines = [
    '| samples of | pairs | implicit reward | learned reward |',
    '|---' * 4 + '|',
  ]
  for name, blocks in runs.items():
    found = [x['own_pairs'] for x in blocks.values() if 'own_pairs' in x]
    if found:
      cells = [
        _cell([x[key] for x in found]) for key in ('implicit', 'learned')
      ]
      count = sum(x['pairs'] for x in found)
      lines.append(f'| {name} | {count} | ' + ' | '.join(cells) + ' |')
  return lines


if __name__ == '__main__':
  main()
