"""Best-of-n: the sample with the highest reward, and what n is worth.

The baseline of the DPO paper (arXiv:2305.18290, Section 6 and App. D.1).
"""

import json
import operator
import pathlib
from typing import Any, NamedTuple

import numpy as np

from dpo_jax import assets
from dpo_jax.evals import likelihood, samples, statistics


class Curve(NamedTuple):
  """Expected reward of the best of n samples, for several n.

  reward: the name of a reward. rows: for each n, the `mean` over prompts with
  the ends `low` and `high` of its 95 % interval, and `kl_bound` in nats.
  """

  reward: str
  num_prompts: int
  num_samples: int
  rows: list[dict[str, float]]


def choose(rows: samples.Rows, n: int, reward: str) -> samples.Rows:
  """The row with the highest score of each n rows, which has `best_of` too.

  Of equal scores, the first row's.
  """
  groups = [rows[i : i + n] for i in range(0, len(rows), n)]
  score = operator.itemgetter(reward)
  return [{**max(group, key=score), 'best_of': n} for group in groups]


def make_curve(scores_BxM: np.ndarray, reward: str) -> Curve:
  """The curve for n = 1, 2, 4, ... and M, all from the same scores.

  The intervals are normal ones over the prompts, which hold for two prompts or
  more and treat the prompts as independent; the values at different n are not.
  """
  b, m = np.shape(scores_BxM)
  rows = []
  for n in sorted({m, *(2**k for k in range(m.bit_length()))}):
    best = likelihood.mean(statistics.best_of_n(scores_BxM, n))
    rows.append({'n': n, **best, 'kl_bound': statistics.best_of_n_kl_bound(n)})
  return Curve(reward, b, m, rows)


def write(curve: Curve, path: pathlib.Path) -> None:
  """Writes a curve to this .json, and its picture beside it as .png."""
  with assets.atomic_path(path) as temp:
    temp.write_text(json.dumps(curve._asdict(), indent=2) + '\n', 'utf-8')
  with assets.atomic_path(path.with_suffix('.png')) as temp:
    make_figure(curve).savefig(temp, format='png')


def make_figure(curve: Curve) -> Any:
  """A matplotlib figure: the reward by n, and by the bound of the KL."""
  from matplotlib import figure, ticker

  page = figure.Figure((8.4, 3.9), dpi=120, layout='constrained')
  page.suptitle(
    f'Best of n samples, chosen by {curve.reward}', x=0.01, ha='left'
  )
  page.supxlabel(
    f'{curve.num_samples} samples of each of {curve.num_prompts} prompts. '
    'Line: mean over prompts; band: its 95 % interval.\n'
    'Bound of the KL from the distribution that was sampled: '
    'log n - (n - 1) / n.',
    fontsize=8,
    x=0.01,
    ha='left',
  )
  columns = {name: [row[name] for row in curve.rows] for name in curve.rows[0]}
  by_n, by_kl = page.subplots(1, 2, sharey=True)
  for axes, name, label in (
    (by_n, 'n', 'samples n'),
    (by_kl, 'kl_bound', 'bound of KL(best of n || model), nats'),
  ):
    x, color = columns[name], '#0072B2'
    axes.plot(x, columns['mean'], color=color, marker='o', ms=4)
    axes.fill_between(
      x, columns['low'], columns['high'], color=color, alpha=0.18, lw=0
    )
    axes.set_xlabel(label)
    axes.grid(alpha=0.25)
    axes.spines[['top', 'right']].set_visible(False)
  by_kl.margins(x=0.12)  # Room for the last n.
  by_n.set_ylabel(f'expected reward ({curve.reward})')
  by_n.set_xscale('log', base=2)
  by_n.set_xticks(columns['n'])
  by_n.xaxis.set_major_formatter(ticker.ScalarFormatter())
  by_n.xaxis.set_minor_locator(ticker.NullLocator())
  for n, x, y in zip(columns['n'], columns['kl_bound'], columns['mean']):
    by_kl.annotate(
      f'n = {n}', (x, y), (3, -11), textcoords='offset points', fontsize=7.5
    )
  return page
