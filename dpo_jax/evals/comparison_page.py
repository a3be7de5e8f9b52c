"""A comparison of runs as one HTML file, which needs no network."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from typing import Any

from dpo_jax.evals import frontier

# Okabe and Ito's palette, which does not rely on red against green.
COLORS = (
  '#0072B2',
  '#D55E00',
  '#009E73',
  '#E69F00',
  '#CC79A7',
  '#56B4E9',
  '#000000',
)
MARKERS = 'osD^v<>'
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 0 auto;
  padding: 1rem; color: #222 }
table { border-collapse: collapse; margin: .6rem 0 }
th, td { border: 1px solid #ccc; padding: .25rem .6rem; text-align: left;
  vertical-align: top }
td.text { white-space: pre-wrap; overflow-wrap: anywhere; min-width: 14rem }
img { max-width: 100% }
p, li { max-width: 52rem }
.scroll { overflow-x: auto }
"""


def frontier_figure(
  names: Sequence[str], runs: Sequence[Sequence[frontier.Point]], reward: str
):
  """Reward against KL: a point an evaluation, with 95 % intervals."""
  from matplotlib.figure import Figure

  figure = Figure(figsize=(8, 5), dpi=120, layout='constrained')
  axes = figure.add_subplot()
  for i, (name, points) in enumerate(zip(names, runs)):
    stats = [frontier.intervals(p) for p in points]
    kl, value = ([s[x] for s in stats] for x in ('kl', 'reward'))
    errors = {
      f'{axis}err': [
        [max(s[x] - s[f'{x}_low'], 0) for s in stats],
        [max(s[f'{x}_high'] - s[x], 0) for s in stats],
      ]
      for axis, x in (('x', 'kl'), ('y', 'reward'))
    }
    axes.errorbar(
      kl,
      value,
      **errors,
      label=name,
      color=COLORS[i % len(COLORS)],
      marker=MARKERS[i % len(MARKERS)],
      ms=5,
      lw=1.2,
      elinewidth=0.7,
    )
    axes.annotate(
      f'step {points[-1].step}',
      (kl[-1], value[-1]),
      textcoords='offset points',
      xytext=(6, 4),
      fontsize=8,
      color=COLORS[i % len(COLORS)],
    )
  axes.set(
    xlabel='KL of the policy to its reference, nats per answer',
    ylabel=f'mean {reward} of samples',
  )
  axes.grid(alpha=0.25)
  axes.spines[['top', 'right']].set_visible(False)
  figure.legend(loc='outside upper left', ncols=len(names), frameon=False)
  return figure


def curves_figure(
  names: Sequence[str],
  rows: Sequence[Sequence[Mapping[str, float]]],
  metrics: Sequence[str],
):
  """Each metric by step, with a line a run and a band of its 95 % interval."""
  from matplotlib import ticker
  from matplotlib.figure import Figure

  columns = min(3, len(metrics))
  lines = -(-len(metrics) // columns)
  figure = Figure((4 * columns, 3 * lines + 0.6), dpi=110, layout='constrained')
  for k, metric in enumerate(metrics):
    axes = figure.add_subplot(lines, columns, k + 1)
    for i, (name, of_run) in enumerate(zip(names, rows)):
      found = [row for row in of_run if metric in row]
      color = COLORS[i % len(COLORS)]
      steps = [row['step'] for row in found]
      axes.plot(
        steps,
        [row[metric] for row in found],
        color=color,
        label=name,
        # What is measured seldom; lines that coincide are told apart.
        marker=MARKERS[i % len(MARKERS)] if '/' in metric else None,
        ms=6 if i == 0 else 3.5,
        fillstyle='none' if i == 0 else 'full',
      )
      if found and f'{metric}_low' in found[0]:
        ends = (
          [row[f'{metric}_{e}'] for row in found] for e in ('low', 'high')
        )
        axes.fill_between(steps, *ends, color=color, alpha=0.15, lw=0)
    axes.set_title(metric, loc='left', fontsize=10)
    axes.set_xlabel('optimizer step')
    axes.xaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))
    axes.grid(alpha=0.25)
    axes.spines[['top', 'right']].set_visible(False)
  figure.legend(
    *axes.get_legend_handles_labels(),
    loc='outside upper left',
    ncols=len(names),
    frameon=False,
  )
  return figure


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
  """An HTML table; a text in a list of one is kept with its line breaks."""

  def cell(x):
    if isinstance(x, list):
      return f'<td class="text">{html.escape(x[0])}</td>'
    return f'<td>{html.escape(str(x))}</td>'

  top = ''.join(f'<th>{html.escape(x)}</th>' for x in head)
  body = ''.join(f'<tr>{"".join(map(cell, row))}</tr>' for row in rows)
  return f'<div class="scroll"><table><tr>{top}</tr>{body}</table></div>'


def image(figure, text: str) -> str:
  """A figure inside the page; text: for those who do not see it."""
  file = io.BytesIO()
  figure.savefig(file, format='png')
  data = base64.b64encode(file.getvalue()).decode()
  return f'<img alt="{html.escape(text)}" src="data:image/png;base64,{data}">'


def page(title: str, sections: Sequence[tuple[str, str, str]]) -> str:
  """(heading, what it shows in plain text, HTML) of each section."""
  body = ''.join(
    f'<h2>{html.escape(heading)}</h2><p>{html.escape(text)}</p>{content}'
    for heading, text, content in sections
  )
  return (
    f'<!doctype html><html lang="en"><meta charset="utf-8">'
    f'<title>{html.escape(title)}</title><style>{_STYLE}</style>'
    f'<h1>{html.escape(title)}</h1>{body}</html>\n'
  )
