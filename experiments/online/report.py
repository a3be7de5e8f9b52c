"""Numbers, samples and plot of runs of page.py.

  python -m experiments.online.report runs/online/ppo_0 ...

A run is a directory METHOD_SEED that the commit which is checked out here has
made, of iterative_page.py if METHOD is iterative. Writes the result
results/METHOD_SEED.json and, of all results of page.py there, online.png.
"""

import argparse
import json
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import figure

from dpo_jax.evals import samples
from dpo_jax.training import metrics
from experiments.online import page
from experiments.throughput import machine

RESULTS = pathlib.Path(__file__).parent / 'results'
COLOURS = {'ppo': '#0072B2', 'rloo': '#009E73', 'online_dpo': '#E69F00'}
# Of a collection, and of the samples at the start and at the end.
ROLLOUTS = ('reward', 'kl', 'kl_coefficient', 'length', 'ended', 'untied')
SAMPLES = ('kl', 'length', 'repetition', 'vader', 'vader_positive')
NUM_SHOWN = 8  # Samples of each end.


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('runs', nargs='*', type=pathlib.Path)
  args = parser.parse_args()
  described = machine.describe()
  for run in args.runs:
    found = _result(run) | {'machine': described}
    path = RESULTS / f'{run.name}.json'
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + '\n')
  results = {
    path.stem: json.loads(path.read_text())
    for method in COLOURS
    for path in sorted(RESULTS.glob(f'{method}_[0-9]*.json'))
  }
  draw(results).savefig(RESULTS / 'online.png')
  print(table(results))


def _result(run: pathlib.Path) -> dict:
  """What is kept of a run's directory."""
  method, _, seed = run.name.rpartition('_')
  if method == 'iterative':
    return _iterative_result(run)
  rows = metrics.read_jsonl(run / 'metrics.jsonl')
  return {
    'command': (
      f'python -m dpo_jax.train --config experiments/online/page.py:{method} '
      f'--workdir runs/online/{run.name} --config.seed={seed}'
    ),
    'method': method,
    'seed': int(seed),
    'rollouts': _columns(rows, 'rollouts', ROLLOUTS),
    'samples': _columns(rows, 'samples', SAMPLES),
    'texts': _texts(run),
  }


def _iterative_result(run: pathlib.Path) -> dict:
  """Of each round: the scores of what was sampled, and the training."""
  rounds = []
  for folder in sorted(run.glob('round_*')):
    rows = metrics.read_jsonl(folder / 'train' / 'metrics.jsonl')
    scores = [x['scores'] for x in samples.read(folder / 'pairs/pairs.jsonl')]
    rounds.append(
      {
        'prompts': len(scores),
        'score': float(np.mean(scores)),
        'best_of_prompt': float(np.max(scores, axis=1).mean()),
        'samples': _columns(rows, 'samples', SAMPLES),
        'held_out': _columns(rows, 'eval', ('loss', 'rewards/accuracies')),
        'texts': _texts(folder / 'train'),
      }
    )
  return {
    'command': (
      'python -m dpo_jax.iterative '
      '--config experiments/online/iterative_page.py '
      f'--config.pairs.data.path=FOLDER --workdir runs/online/{run.name}'
    ),
    'rounds': rounds,
  }


def _columns(rows: Sequence[dict], part: str, names: Sequence[str]) -> dict:
  """name -> the values logged under part/name, for names that have some."""
  values = {
    name: [row[key] for row in rows if (key := f'{part}/{name}') in row]
    for name in names
  }
  return {name: found for name, found in values.items() if found}


def _texts(run: pathlib.Path) -> dict[str, list[str]]:
  """The first samples of the start and of the end."""
  paths = sorted((run / 'samples').glob('*.jsonl'))
  return {
    path.stem: [row['text'] for row in samples.read(path)][:NUM_SHOWN]
    for path in (paths[0], paths[-1])
  }


def table(results: Mapping[str, dict]) -> str:
  """Markdown: samples of the start and of the end, and the last collections."""
  lines = [
    '| run | VADER, start | VADER, end | KL, nats | length, start and end | '
    'repeated n-grams, start and end |',
    '|---' * 6 + '|',
  ]
  for name, found in results.items():
    s = found['samples']
    lines.append(
      f'| {name} | {s["vader"][0]:.3f} | {s["vader"][-1]:.3f} | '
      f'{s["kl"][-1]:.1f} | {s["length"][0]:.1f}, {s["length"][-1]:.1f} | '
      f'{s["repetition"][0]:.3f}, {s["repetition"][-1]:.3f} |'
    )
  return '\n'.join(lines)


def draw(results: Mapping[str, dict]) -> figure.Figure:
  """Reward and KL of every collection, a line for each run."""
  made = figure.Figure((10, 4), dpi=120, layout='constrained')
  reward, kl = made.subplots(1, 2)
  for found in results.values():
    method, of = found['method'], found['rollouts']
    label = method.replace('_', ' ') if found['seed'] == 0 else None
    for axes, name in ((reward, 'reward'), (kl, 'kl')):
      x = range(1, len(of[name]) + 1)
      axes.plot(x, of[name], color=COLOURS[method], lw=1.2, label=label)
  target = page.METHODS['ppo']['target_kl']
  kl.axhline(target, color='#666666', lw=0.8, ls='--', label="PPO's target")
  for axes, title in (
    (reward, 'reward of the samples (VADER)'),
    (kl, 'KL(policy, start) of a sample, nats'),
  ):
    axes.set_title(title, fontsize=10)
    axes.set_xlabel('collection')
    axes.grid(lw=0.3)
    axes.legend(fontsize=8)
  seeds = len({found['seed'] for found in results.values()})
  made.suptitle(f'SmolLM2-135M on one prompt, {seeds} seeds', fontsize=11)
  return made


if __name__ == '__main__':
  main()
