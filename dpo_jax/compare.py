"""Compare training runs: configs, curves, reward at the same KL, samples.

  python -m dpo_jax.compare runs/beta01 runs/beta03 runs/beta1

Runs may be finished or running. The folder --out (by default runs/comparison)
gets comparison.html, one file that opens without network, its pictures as .png,
and comparison.json with its numbers. The first run is the one that others are
compared with.

Reward and KL need runs with samples: samples.reward of their pages, temperature
1 and no filter. All runs must have samples of the same prompts.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from absl import flags, logging

from dpo_jax import assets, cli, run_dir
from dpo_jax.evals import comparison_page, frontier, samples
from dpo_jax.training import config_diff

# What is drawn, where at least one run has it, beside the samples' reward.
METRICS = {
  'loss': "the run's objective on training batches",
  'eval/loss': "the run's objective on held-out examples",
  'eval/rewards/accuracies': 'share of held-out pairs whose chosen answer has '
  'the larger reward; equal ones, as of a policy at its reference, count 0',
  'eval/rewards/margins': 'reward of the chosen less the rejected answer',
  'rollouts/reward': 'mean reward of the samples that are trained on',
  'samples/kl': 'KL to the reference, nats an answer',
  'samples/length': 'tokens of an answer, the one that ends it included',
  'samples/repetition': 'share of 4-grams that were in the answer before',
}
# Options that are named where all runs have the same.
SHARED = (
  'method.name',
  'method.loss',
  'model.uri',
  'seed',
  'samples.max_new_tokens',
)
SHOWN_PROMPTS = 6


class Run(NamedTuple):
  """What a run left; samples: step -> rows, in the order of the steps."""

  name: str
  dir: run_dir.RunDir
  rows: list[dict[str, Any]]
  samples: dict[int, samples.Rows]

  @property
  def reward(self) -> str | dict[str, Any] | None:
    """The name or the section of the reward that scores its samples."""
    return (self.dir.config.get('samples') or {}).get('reward')


def read(paths: Sequence[str]) -> list[Run]:
  """The runs of directories; ValueError for what is none, or given twice."""
  if len(paths) < 2:
    raise ValueError(f'Give two or more runs to compare; given: {len(paths)}.')
  folders = [assets.local_path(path, 'a run').resolve() for path in paths]
  for i, folder in enumerate(folders):
    if folder in folders[:i]:
      raise ValueError(f'{paths[i]!r} is given twice.')
  names = _names(folders)
  out = []
  for path, name in zip(paths, names):
    found = run_dir.find(path)
    if found is None:
      raise ValueError(
        f"{path!r} is not a training run's directory: it has no config.json of "
        'one.'
      )
    steps = sorted(found.folder.glob('samples/[0-9]*.jsonl'))
    rows = {int(file.stem): samples.read(file) for file in steps}
    out.append(Run(name, found, found.rows(), rows))
  return out


def _names(folders: Sequence[pathlib.Path]) -> list[str]:
  """The last parts of the paths, as many as tell them apart."""
  most = max(len(folder.parts) for folder in folders)
  for count in range(1, most + 1):
    names = ['/'.join(folder.parts[-count:]) for folder in folders]
    if len(set(names)) == len(names):
      break
  return names


def compare(paths: Sequence[str], out: pathlib.Path) -> dict[str, Any]:
  """Writes the comparison into a folder; returns what comparison.json has.

  ValueError for directories that are no runs, and for samples of different
  prompts.
  """
  runs = read(paths)
  reward = _common_reward(runs)
  points = _points(runs, reward) if reward else None
  out.mkdir(parents=True, exist_ok=True)
  names = [run.name for run in runs]
  matched = frontier.match(points) if points else []
  sections = [
    _section_of_runs(runs, points, reward),
    _section_of_configs(runs),
  ]
  figures = {}
  if points:
    figures['frontier'] = comparison_page.frontier_figure(names, points, reward)
    sections.append(_section_of_frontier(figures['frontier'], reward, points))
    sections.append(_section_of_matched(names, points, matched, reward))
  known = METRICS | {f'samples/{reward}': f'mean {reward} of the samples'}
  metrics = {m: x for m, x in known.items() if _has(runs, m)}
  if metrics:
    figures['curves'] = comparison_page.curves_figure(
      names, [run.rows for run in runs], list(metrics)
    )
    sections.append(_section_of_curves(figures['curves'], metrics))
  if all(run.samples for run in runs):
    sections.append(_section_of_samples(runs, reward))
  numbers = _numbers(runs, points, matched, reward)
  for name, figure in figures.items():
    with assets.atomic_path(out / f'{name}.png') as temp:
      figure.savefig(temp, format='png')
  title = f'{len(runs)} runs: {", ".join(names)}'
  for name, text in (
    ('comparison.html', comparison_page.page(title, sections)),
    ('comparison.json', json.dumps(numbers, indent=2) + '\n'),
  ):
    with assets.atomic_path(out / name) as temp:
      temp.write_text(text, 'utf-8')
  return numbers


def _has(runs: Sequence[Run], metric: str) -> bool:
  return any(metric in row for run in runs for row in run.rows)


def _common_reward(runs: Sequence[Run]) -> str | None:
  """The name of the reward of all samples; None, with a warning, if none is."""
  found = [run.reward for run in runs]
  reward, scored = found[0], all(run.samples for run in runs)
  if reward is not None and scored and all(x == reward for x in found):
    return reward if isinstance(reward, str) else reward['name']
  logging.warning(
    'No reward at the same KL: the runs have the rewards %s.',
    ', '.join(map(str, found)),
  )
  return None


def _points(
  runs: Sequence[Run], reward: str
) -> list[list[frontier.Point]] | None:
  """Of each run; None, with a warning, for samples without a KL."""
  for run in runs:
    firsts = [rows[0] for rows in run.samples.values()]
    if not all('kl' in row and samples.unfiltered(row) for row in firsts):
      logging.warning(
        '%s: its samples have no KL to the reference, or were drawn at another '
        'temperature than 1 or with a filter, so there is no frontier.',
        run.name,
      )
      return None
  found = [
    [frontier.point(step, rows, reward) for step, rows in run.samples.items()]
    for run in runs
  ]
  for run, points in zip(runs[1:], found[1:]):
    if points[0].units != found[0][0].units:
      raise ValueError(
        f'{run.name} has samples of other prompts than {runs[0].name}: compare '
        'runs with the same held-out data and the same section `samples`.'
      )
  return found


def _number(mean: float, low: float, high: float) -> str:
  return f'{mean:.3g} [{low:.3g}, {high:.3g}]'


def _section_of_runs(runs, points, reward):
  head = ['run', 'state', 'steps']
  if points:
    head += ['KL at its end, nats an answer', f'{reward} at its end']
  rows = []
  for i, run in enumerate(runs):
    last = max((row['step'] for row in run.rows), default=0)
    row = [run.name, 'ended' if run.dir.ended else 'not ended', last]
    if points:
      s = frontier.intervals(points[i][-1])
      for x in ('kl', 'reward'):
        row.append(_number(s[x], s[f'{x}_low'], s[f'{x}_high']))
    rows.append(row)
  flat = [_options(run) for run in runs]
  same = [
    f'{key} {flat[0][key]}'
    for key in SHARED
    if key in flat[0] and all(x.get(key) == flat[0][key] for x in flat)
  ]
  text = f'All have {", ".join(same)}.' if same else ''
  if points:
    text += (
      f' Brackets hold 95 % intervals over the {len(points[0][0].units)} '
      f'{_unit(points)} of an evaluation, by the normal distribution.'
    )
  return 'Runs', text.strip(), comparison_page.table(head, rows)


def _options(run: Run) -> dict[str, str]:
  """A run's options by their full names."""
  lines = config_diff.lines(run.dir.config).split('\n')
  return dict(line.split(': ', 1) for line in lines)


def _section_of_configs(runs):
  flat = [_options(run) for run in runs]
  keys = sorted(set().union(*flat))
  rows = [
    [key, *(of_run.get(key, '') for of_run in flat)]
    for key in keys
    if len({of_run.get(key, 'null') for of_run in flat}) > 1
  ]
  text = 'The options that differ; all others are the same in all runs.'
  head = ['option', *(run.name for run in runs)]
  return 'Configs', text, comparison_page.table(head, rows)


def _unit(points) -> str:
  return 'samples' if isinstance(points[0][0].units[0], int) else 'prompts'


def _section_of_frontier(figure, reward, points):
  units = _unit(points)
  text = (
    f'Each marker is an evaluation of the run, from its start to its end: the '
    f'mean {reward} of its samples (up) against how far the policy has moved '
    'from its reference (right; the KL divergence, summed over an answer). '
    'Crosses are 95 % intervals over the '
    f'{len(points[0][0].units)} {units}. Higher at the same distance is '
    'better; farther right with the same reward is worse.'
  )
  image = comparison_page.image(figure, f'{reward} against KL')
  return 'Reward against KL', text, image


def _section_of_matched(names, points, matched, reward):
  text = (
    f'The mean {reward} of each run where its policy is equally far from its '
    'reference, interpolated linearly in the root of the KL; nothing is '
    'extrapolated: a cell is empty where a run has not been. Differences are '
    f'to {names[0]}, on the same {_unit(points)}. Brackets hold 95 % '
    f'intervals, bootstrapped over the {len(points[0][0].units)} '
    f'{_unit(points)}; one of a difference that excludes 0 tells two runs '
    'apart. A star: on the line from the start, which runs share, so that '
    'differences are small there whatever the runs do.'
  )
  if not matched:
    text = f'No other run covers a KL of {names[0]}: nothing is compared here.'
    return 'Reward at the same KL', text, ''
  head = [
    'KL, nats an answer',
    *names,
    *(f'{name} - {names[0]}' for name in names[1:]),
  ]
  rows = [
    [
      f'{m.kl:.3g}',
      *(
        '' if x is None else _number(*x) + '*' * at_start
        for x, at_start in zip(m.rewards, m.from_start)
      ),
      *('' if x is None else _number(*x) for x in m.differences[1:]),
    ]
    for m in matched
  ]
  return 'Reward at the same KL', text, comparison_page.table(head, rows)


def _section_of_curves(figure, metrics):
  text = (
    'Metrics of the runs by optimizer step. Bands are 95 % intervals over '
    'examples or samples; loss, length and repetition have none. Loss, '
    "accuracies and margins are of each run's own objective: where beta or the "
    'objective differs, a lower loss or a larger margin is not a better run.'
  )
  image = comparison_page.image(figure, 'metrics by step')
  meanings = comparison_page.table(['metric', 'meaning'], [*metrics.items()])
  return 'Curves', text, image + meanings


def _section_of_samples(runs, reward):
  text = (
    'What each run answers at its last evaluation, with the same random keys; '
    'some answers are cut off at samples.max_new_tokens.'
  )
  last = [list(run.samples.values())[-1] for run in runs]
  firsts = [_firsts(rows) for rows in last]
  shown = [p for p in firsts[0] if all(p in of_run for of_run in firsts)]
  rows = []
  for prompt in shown[:SHOWN_PROMPTS]:
    cells = []
    for of_run in firsts:
      row = of_run[prompt]
      score = f'\n({reward} {row[reward]:.3g})' if reward in row else ''
      cells.append([row['text'].strip() + score])
    rows.append([[prompt], *cells])
  head = ['prompt', *(f'{r.name}, step {list(r.samples)[-1]}' for r in runs)]
  return 'Samples', text, comparison_page.table(head, rows)


def _firsts(rows: samples.Rows) -> dict[str, dict[str, Any]]:
  """prompt -> its first row; the rows of one prompt alone, by their number."""
  found = {}
  for row in rows:
    found.setdefault(row['prompt'], row)
  if len(found) > 1:
    return found
  return {f'{r["prompt"]} (sample {i + 1})': r for i, r in enumerate(rows)}


def _numbers(runs, points, matched, reward):
  found = {'runs': [run.name for run in runs], 'reward': reward}
  if points:
    found['points'] = {
      run.name: [{'step': p.step, **frontier.intervals(p)} for p in of_run]
      for run, of_run in zip(runs, points)
    }
    found['matched'] = [m._asdict() for m in matched]
  return found


def main(argv):
  out = assets.local_path(_OUT.value, '--out')
  found = compare(argv[1:], out)
  for m in found.get('matched', ()):
    print(f'{found["reward"]} at a KL of {m["kl"]:.3g} nats:')
    for name, value in zip(found['runs'], m['rewards']):
      print(f'  {name}  {"-" if value is None else _number(*value)}')
  print(f'{out / "comparison.html"}')


if __name__ == '__main__':
  logging.set_verbosity(logging.INFO)
  _OUT = flags.DEFINE_string('out', 'runs/comparison', 'The folder to write.')
  cli.run(main)
