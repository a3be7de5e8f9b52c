"""Win rates of side a over side b from votes, as numbers, text and a plot."""

import collections
import json
import math
import pathlib
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np

from dpo_jax import assets
from dpo_jax.evals import statistics

Votes = Sequence[dict[str, Any]]
# Verdicts that decide nothing, which are counted.
UNDECIDED = ('skip', 'refused', 'unparsable')


def of_votes(votes: Votes, outcomes: Sequence[float | None]) -> dict[str, Any]:
  """Statistics of votes on two sides; outcomes: of each, for side a.

    win_rate, low, high   the mean outcome, ties as halves, 95 %: Wilson's with
                          one vote a prompt, else a bootstrap over prompts
    win_rate_no_ties      of the votes that are no ties
    votes, prompts, ties, skip, refused, unparsable   counts; `votes` decide
    first_wins, ..._low, ..._high   how often the answer shown first wins
    words_a, words_b      mean length of the answers
    identical             comparisons of equal answers, which are ties

  Without a vote that decides, the rates are None.
  """
  decided = [(v, x) for v, x in zip(votes, outcomes) if x is not None]
  prompts, x = [v['prompt'] for v, _ in decided], [x for _, x in decided]
  counts = collections.Counter(v['verdict'] for v in votes)
  rate = statistics.interval(x, prompts) if x else [None] * 3
  tied = all(value == 0.5 for value in x)
  found = {
    **dict(zip(('win_rate', 'low', 'high'), rate)),
    'win_rate_no_ties': None if tied else statistics.win_rate(x, ties='drop'),
    'votes': len(x),
    'prompts': len(set(prompts)),
    'ties': counts['tie'],
    **{name: counts[name] for name in UNDECIDED},
  }
  shown = [
    (x, v['first'] == 'a', v['prompt']) for v, x in decided if v.get('first')
  ]
  if shown:
    bias = statistics.position_bias(*zip(*shown))
    found['first_wins'] = bias['mean']
    found |= {f'first_wins_{end}': bias[end] for end in ('low', 'high')}
  for side in 'ab':
    lengths = [len(v[side].split()) for v, _ in decided]
    found[f'words_{side}'] = float(np.mean(lengths)) if lengths else None
  same = {(v['prompt'], v['a']) for v, _ in decided if v['a'] == v['b']}
  found['identical'] = len(same)
  return found


def table(groups: dict[str, dict[str, Any]], a: str, b: str) -> str:
  """Text: a line for each group."""
  lines = [f'Win rate of {a} over {b}:', '']
  wide = max(map(len, groups), default=0)
  for name, s in groups.items():
    undecided = ', '.join(f'{s[n]} {n}' for n in UNDECIDED if s[n])
    rate = 'no vote decides'
    if s['votes']:
      rate = f'{s["win_rate"]:6.1%}  [{s["low"]:.1%}, {s["high"]:.1%}]'
    lines.append(
      f'  {name:<{wide}}  {rate}  {s["votes"]} votes on {s["prompts"]} '
      f'prompts, {s["ties"]} ties{", " + undecided if undecided else ""}'
    )
    if 'first_wins' in s:
      lines.append(
        f'  {"":<{wide}}  the answer shown first wins {s["first_wins"]:.1%} '
        f'[{s["first_wins_low"]:.1%}, {s["first_wins_high"]:.1%}]; words: '
        f'{s["words_a"]:.0f} and {s["words_b"]:.0f}'
      )
  return '\n'.join(lines)


def agreement(people: Votes, judge: Votes) -> dict[str, dict[str, float]]:
  """By group, how often people agree with each other and with a judge.

  Of `statistics.agreement_with_people`: votes for a or b on the same prompt and
  answers; ties and what decides nothing are left out, as in the paper. A judge
  that was asked in both orders and took both sides has no label.
  """
  labels: dict[tuple, set] = {}
  for vote in judge:
    labels.setdefault(_key(vote), set()).add(vote['verdict'])
  items: dict[str, dict[tuple, list]] = {}
  for vote in people:
    if vote['verdict'] in ('a', 'b'):
      of_group = items.setdefault(vote.get('group', 'all'), {})
      of_group.setdefault(_key(vote), []).append(vote['verdict'])
  found = {}
  for group, of_group in items.items():
    said = [labels.get(key, set()) for key in of_group]
    votes = list(of_group.values())
    humans = statistics.agreement_with_people(votes, [''] * len(votes))
    kept = [
      (v, *label) for v, label in zip(votes, said) if label in ({'a'}, {'b'})
    ]
    found[group] = humans | {'human_judge': math.nan, 'votes': 0}
    if kept:
      with_judge = statistics.agreement_with_people(*zip(*kept))
      found[group] |= {n: with_judge[n] for n in ('human_judge', 'votes')}
  return found


def _key(vote: dict[str, Any]) -> tuple[str, str, str]:
  return vote['prompt'], vote['a'], vote['b']


def agreement_table(people: Votes, judge: Votes) -> str:
  """Text: a line for each group of `agreement`."""
  lines = ['Agreement, of votes for one side:', '']
  for name, s in agreement(people, judge).items():
    lines.append(
      f'  {name}  people with each other {s["human_human"]:.1%} '
      f'({s["pairs"]} pairs of votes), with the judge {s["human_judge"]:.1%} '
      f'({s["votes"]} votes)'
    )
  return '\n'.join(lines)


def write(
  groups: dict[str, dict[str, Any]],
  path: pathlib.Path,
  *,
  a: str,
  b: str,
  judge: str,
) -> None:
  """Writes this .json and, where groups are temperatures, a .png beside it."""
  result = {'a': a, 'b': b, 'judge': judge, 'groups': groups}
  with assets.atomic_path(path) as temp:
    temp.write_text(json.dumps(result, indent=2) + '\n', 'utf-8')
  decided = {name: s for name, s in groups.items() if s['votes']}
  if decided and all(name.startswith('T=') for name in groups):
    with assets.atomic_path(path.with_suffix('.png')) as temp:
      make_figure(decided, a=a, b=b, judge=judge).savefig(temp, format='png')


def make_figure(groups, *, a: str, b: str, judge: str):
  """Win rate by sampling temperature with 95 % intervals, as in the paper."""
  from matplotlib.figure import Figure

  temperatures = [float(name.removeprefix('T=')) for name in groups]
  rate, low, high = (
    np.array([s[name] for s in groups.values()])
    for name in ('win_rate', 'low', 'high')
  )
  figure = Figure(figsize=(6, 4), dpi=120, layout='constrained')
  axes = figure.add_subplot()
  axes.axhline(0.5, color='0.6', linewidth=1, linestyle='--')
  bars = np.maximum([rate - low, high - rate], 0)
  axes.errorbar(temperatures, rate, bars, marker='o', capsize=3)
  axes.set(xlabel='sampling temperature', ylabel='win rate', ylim=(0, 1))
  lines = (f'Win rate of {a}', f'over {b}', f'judged by {judge}')
  title = '\n'.join(textwrap.fill(line, 72) for line in lines)
  axes.set_title(title, loc='left', fontsize=9)
  votes = {s['votes'] for s in groups.values()}
  count = f'{min(votes)}' + (f' to {max(votes)}' if len(votes) > 1 else '')
  axes.text(
    0.01,
    0.02,
    f'bars: 95 % intervals, {count} votes a point; dashed: no difference',
    transform=axes.transAxes,
    fontsize=8,
    color='0.4',
  )
  return figure
