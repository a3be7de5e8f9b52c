"""Result files to numbers, tables and plots.

python -m experiments.throughput.report [results/*.json]
"""

import json
import pathlib
import sys

import numpy as np
from matplotlib import figure as figures

RESULTS = pathlib.Path(__file__).parent / 'results'
_RESAMPLES = 10_000


def ratio(over, under, seed: int) -> dict:
  """Median of the pairwise quotients, its 95% bootstrap interval, the range."""
  quotients = np.asarray(over) / np.asarray(under)
  picks = np.random.default_rng(seed).integers(
    len(quotients), size=(_RESAMPLES, len(quotients))
  )
  low, high = np.quantile(np.median(quotients[picks], axis=1), [0.025, 0.975])
  return {
    'median': float(np.median(quotients)),
    'low': float(low),
    'high': float(high),
    'min': float(quotients.min()),
    'max': float(quotients.max()),
    'pairs': quotients.tolist(),
  }


def summarise(sides: dict[str, list[dict]], batch: int, seed: int) -> dict:
  """Medians of the measured steps of 'ours' and 'peer', and their ratios."""
  out = {}
  for name, steps in sides.items():
    wall, cpu, steal, idle = (
      float(np.median([step[key] for step in steps]))
      for key in ('wall_s', 'cpu_s', 'steal', 'idle_cpu_s')
    )
    real, computed = (
      sum(step['tokens'][key] for step in steps) for key in ('real', 'computed')
    )
    out[name] = {
      'wall_s': wall,
      'cpu_s': cpu,
      'steal': steal,
      'idle_cpu_s': idle,
      'examples_per_s': batch / wall,
      'peak_rss_gb': max(step['peak_rss_gb'] for step in steps),
      'real_tokens': real / len(steps),
      'computed_tokens': computed / len(steps),
      'real_fraction': real / computed,
    }
  for key in ('wall_s', 'cpu_s'):
    ours, peer = ([s[key] for s in sides[name]] for name in ('ours', 'peer'))
    out[f'{key}_ratio'] = ratio(peer, ours, seed)
  return out


def table(result: dict) -> str:
  """Markdown of one result file of run.py."""
  summary = result['summary']
  ours, peer = summary['ours'], summary['peer']
  lines = [
    f'{result["name"]}: batches of {result["batch"]}, reference '
    f'{_where(result)}; {len(result["steps"]["ours"])} steps on '
    f'{result["machine"]["cores"]} cores',
    '',
    '| per step | dpo_jax | TRL | TRL / dpo_jax (95% interval; range) |',
    '|---|---|---|---|',
  ]
  for label, key in (('CPU s', 'cpu_s'), ('wall s', 'wall_s')):
    quotient = _quotient(summary[f'{key}_ratio'])
    lines.append(
      f'| {label} | {ours[key]:.2f} | {peer[key]:.2f} | {quotient} |'
    )
  for label, key, form in (
    ('pairs / s', 'examples_per_s', '.3f'),
    ('peak memory, GB', 'peak_rss_gb', '.1f'),
    ('token positions computed', 'computed_tokens', '.0f'),
    ('of them real', 'real_fraction', '.1%'),
    ('CPU s between steps', 'idle_cpu_s', '.3f'),
    ('stolen by other tenants', 'steal', '.1%'),
  ):
    lines.append(f'| {label} | {ours[key]:{form}} | {peer[key]:{form}} | |')
  compiled, shapes = result['compiled_shapes'], len(result['shapes'])
  lines.append(f'| shapes compiled, of planned | {compiled} of {shapes} | | |')
  alike = result['pairs_tokenised_alike'] / result['pairs']
  lines.append(f'| pairs that both tokenise alike | {alike:.0%} | | |')
  return '\n'.join(lines)


def _where(result: dict) -> str:
  computed = 'in the step', 'beforehand'
  ours, peer = (computed[result['precomputed'][s]] for s in ('ours', 'peer'))
  return ours if ours == peer else f'{ours} (dpo_jax), {peer} (TRL)'


def _quotient(r: dict) -> str:
  return (
    f'{r["median"]:.2f} ({r["low"]:.2f} to {r["high"]:.2f}; '
    f'{r["min"]:.2f} to {r["max"]:.2f})'
  )


def attention_table(result: dict) -> str:
  """Markdown of the result file of attention.py."""
  lines = [
    f'attention, forward and backward, {result["repeats"]} times; '
    f'{result["rounds"]} rounds',
    '',
    '| trees | layout | positions | CPU s | over the first (95% interval) |',
    '|---|---|---|---|---|',
  ]
  for case in result['cases']:
    for name, side in case['sides'].items():
      r = side['ratio']
      lines.append(
        f'| {case["trees"]} | {name} | {side["positions"]} '
        f'| {side["cpu_s"]:.3f} '
        f'| {r["median"]:.2f} ({r["low"]:.2f} to {r["high"]:.2f}) |'
      )
  return '\n'.join(lines)


def plot(result: dict, path: pathlib.Path) -> None:
  """CPU seconds of every measured step, both sides."""
  figure = figures.Figure(figsize=(6, 3.5), layout='constrained')
  axes = figure.subplots()
  for name, label in (('ours', 'dpo_jax'), ('peer', 'TRL')):
    values = [step['cpu_s'] for step in result['steps'][name]]
    axes.plot(range(len(values)), values, marker='o', label=label)
  axes.set(
    xlabel='measured step',
    ylabel='CPU seconds',
    title=f'{result["name"]}, batches of {result["batch"]}',
  )
  axes.set_ylim(bottom=0)
  axes.xaxis.get_major_locator().set_params(integer=True)
  axes.legend()
  figure.savefig(path, dpi=150)


TABLES = {'throughput': table, 'attention': attention_table}


def main(paths: list[str]) -> None:
  for path in paths or sorted(RESULTS.glob('*.json')):
    result = json.loads(pathlib.Path(path).read_text())
    print(TABLES[result['study']](result), end='\n\n')


if __name__ == '__main__':
  main(sys.argv[1:])
