"""Table and plot of the results: python -m experiments.objectives.report."""

import argparse
import collections
import json
import pathlib

import matplotlib
from matplotlib import figure

from experiments.objectives import one, run

BLUE, GREY = '#0072B2', '#666666'
# Metric of a result, heading, format.
COLUMNS = (
  ('eval/rewards/accuracies', 'held-out accuracy', '{:.3f}'),
  ('eval/rewards/margins', 'margin, nats', '{:+.2f}'),
  ('samples/kl', 'KL to the start, nats', '{:.2f}'),
  ('samples/length', 'length of samples, tokens', '{:.1f}'),
  ('eval/rewards/chosen', 'log p of chosen, change in nats', '{:+.2f}'),
  ('samples/vader_positive', 'positive by VADER', '{:.2f}'),
)


def read(folder: pathlib.Path):
  """(start's numbers, objective -> its results in the order of seeds)."""
  start = json.loads((folder / 'start.json').read_text())['measured']
  found = collections.defaultdict(list)
  for path in sorted(folder.glob('*_[0-9]*.json')):
    result = json.loads(path.read_text())
    found[result['objective']].append(result)
  return start, dict(sorted(found.items()))


def table(start, found) -> str:
  """Markdown: of each objective the mean over seeds, and their range."""
  heads = ['objective', 'seeds', *(head for _, head, _ in COLUMNS)]
  lines = ['| ' + ' | '.join(heads) + ' |', '|---' * len(heads) + '|']
  cells = [form.format(start[name]) for name, _, form in COLUMNS]
  lines.append('| ' + ' | '.join(['the start', '', *cells]) + ' |')
  for objective, results in found.items():
    cells = []
    for name, _, form in COLUMNS:
      values = [r['measured'][name] for r in results]
      cell = form.format(sum(values) / len(values))
      if len(values) > 1:
        low, high = form.format(min(values)), form.format(max(values))
        cell += f' ({low} to {high})'
      cells.append(cell)
    row = [objective, str(len(results)), *cells]
    lines.append('| ' + ' | '.join(row) + ' |')
  return '\n'.join(lines) + '\n'


def plot(start, found, path: pathlib.Path) -> None:
  """A dot for each seed; of the first four columns."""
  names = list(reversed(found))
  with matplotlib.rc_context({'font.size': 8.5}):
    page = figure.Figure(
      (13, 1.6 + 0.24 * len(names)), dpi=120, layout='constrained'
    )
    panels = page.subplots(1, 4, sharey=True)
    for axes, (name, head, _) in zip(panels, COLUMNS):
      for y, objective in enumerate(names):
        values = [r['measured'] for r in found[objective]]
        if f'{name}_low' in values[0]:
          low, high = (
            sum(v[f'{name}_{end}'] for v in values) / len(values)
            for end in ('low', 'high')
          )
          axes.plot([low, high], [y, y], color=GREY, lw=1, alpha=0.5)
        dots = [v[name] for v in values]
        axes.plot(dots, [y] * len(dots), 'o', color=BLUE, ms=4, alpha=0.8)
      axes.axvline(start[name], color=GREY, lw=0.8, ls='--')
      axes.set_title(head)
      axes.grid(axis='y', lw=0.3)
      axes.set_ylim(-0.7, len(names) - 0.3)
    panels[0].set_yticks(range(len(names)), names)
    page.suptitle(
      f'Every objective: {one.STEPS} steps on the data of the quickstart, one '
      'learning rate',
      x=0.01,
      ha='left',
      weight='bold',
    )
    page.supxlabel(
      'A dot is a seed (order of the data). Grey lines: 95 % intervals over '
      '256 held-out pairs or 32 own samples. Dashed: the start, where accuracy '
      'is 0 by definition.',
      fontsize=8,
      x=0.01,
      ha='left',
    )
    page.savefig(path)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--results', type=pathlib.Path, default=run.RESULTS)
  folder = parser.parse_args().results
  start, found = read(folder)
  text = table(start, found)
  (folder / 'table.md').write_text(text)
  plot(start, found, folder / 'objectives.png')
  print(text)


if __name__ == '__main__':
  main()
