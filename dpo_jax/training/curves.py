"""Draws the metrics of a run as one picture, curves.png."""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from dpo_jax import assets
from dpo_jax.training import metrics as metrics_lib
from dpo_jax.training import processes

# From Okabe and Ito's palette, which does not rely on red against green.
_BLUE, _ORANGE, _VERMILION, _GREEN = '#0072B2', '#E69F00', '#D55E00', '#009E73'
_GREY = '#666666'
LOG_2 = math.log(2)


class Curve(NamedTuple):
  """One metric: a thin line for training batches, else a dot a measurement."""

  metric: str
  label: str
  color: str

  @property
  def thin(self) -> bool:
    return not self.metric.startswith(('eval/', 'samples/'))


class Panel(NamedTuple):
  """Curves on common axes; the y axis includes `limits`."""

  title: str
  unit: str
  curves: Sequence[Curve]
  limits: tuple[float, ...] = ()


def draw(
  rows: pathlib.Path | Sequence[Mapping[str, float]],
  path: pathlib.Path,
  *,
  title: str,
) -> None:
  """Draws `rows`, or those of a run's directory, and writes a PNG atomically.

  Does nothing in all processes but the first. ValueError if no metric in the
  rows has a curve.
  """
  if not processes.first():
    return
  if isinstance(rows, str | pathlib.Path):
    rows = metrics_lib.read_jsonl(pathlib.Path(rows) / 'metrics.jsonl')
  page = make_figure(rows, title)
  with assets.atomic_path(path) as temp:
    page.savefig(temp, format='png')


def make_figure(rows: Sequence[Mapping[str, float]], title: str):
  """A matplotlib figure of all panels; pyplot's global state is not used."""
  panels = panels_of(rows)
  if not panels:
    raise ValueError(f'No metric in {len(rows)} rows has a curve to draw.')
  import matplotlib
  from matplotlib import figure, ticker

  # As few empty places as possible.
  columns = min((4, 3), key=lambda n: (-len(panels) % n, len(panels) < n))
  lines = -(-len(panels) // columns)
  size = (3.9 * columns, 3.1 * lines + 1.0)
  with matplotlib.rc_context({'font.size': 8.5, 'axes.titlesize': 9.5}):
    page = figure.Figure(size, dpi=120, layout='constrained')
    page.suptitle(title, fontsize=12, x=0.01, ha='left', weight='bold')
    page.supxlabel(caption(rows), fontsize=8, x=0.01, ha='left')
    last = max(max(row['step'] for row in rows), 1)
    for i, panel in enumerate(panels):
      axes = page.add_subplot(lines, columns, i + 1)
      _draw_panel(axes, panel, rows)
      axes.set_xlim(-0.02 * last, 1.02 * last)
      locator = ticker.MaxNLocator(5, integer=True, steps=(1, 2, 5, 10))
      axes.xaxis.set_major_locator(locator)
      axes.yaxis.set_major_formatter(lambda value, _: f'{value:.5g}')
  return page


def panels_of(rows: Sequence[Mapping[str, float]]) -> list[Panel]:
  """The panels and curves for which the rows have finite values."""
  names = {k for row in rows for k, v in row.items() if math.isfinite(v)}
  found = []
  for panel in _all_panels(names, _loss_unit(rows)):
    curves = [c for c in panel.curves if c.metric in names]
    if curves:
      found.append(panel._replace(curves=curves))
  return found


def caption(rows: Sequence[Mapping[str, float]]) -> str:
  """Explains the lines, dots, bands and metrics that are drawn."""
  curves = [c for panel in panels_of(rows) for c in panel.curves]
  counts = [r['eval/examples'] for r in rows if 'eval/examples' in r]
  out = []
  if any(c.metric.startswith('rollouts/') for c in curves):
    out.append('Rollouts: samples that are trained on.')
  if any(c.thin for c in curves):
    out.append('Thin lines: training batches, mean since the point before.')
  if any(c.metric.startswith('eval/') for c in curves):
    of = f'{counts[-1]:.0f} ' if counts else ''
    out.append(f'Dots: {of}held-out examples, never trained on.')
  if any(f'{c.metric}_low' in row for c in curves for row in rows):
    out.append('Bands: 95 % intervals, examples taken as independent.')
  out = [' '.join(out)]
  if any(_is_accuracy(c) for c in curves):
    out.append(_meaning_of_rewards(set().union(*rows)))
  if any(c.metric.startswith('samples/') for c in curves):
    out.append(
      "Policy's own samples: drawn at held-out prompts; ended: by EOS, within "
      'the limit of tokens; repeated: n-grams that occur before in the text.'
    )
  return '\n'.join(out)


def _meaning_of_rewards(names: set[str]) -> str:
  if not _of_reward_model(names):
    return (
      'Reward: β log(policy / reference), summed over an answer. Accuracy '
      'counts chosen > rejected strictly: by definition 0 at the start, where '
      'policy and reference agree.'
    )
  text = 'Reward: the scalar of the reward model. '
  if _of_labels(names):
    return (
      f'{text}Chosen: desirable examples, whose reward is to be above 0, and '
      'that of the others below.'
    )
  return f'{text}Accuracy counts chosen > rejected strictly.'


def _is_accuracy(curve: Curve) -> bool:
  return curve.metric.endswith('rewards/accuracies')


def _draw_panel(axes, panel: Panel, rows) -> None:
  labels = set()
  for curve in panel.curves:
    _draw_curve(axes, curve, rows, first=curve.label not in labels)
    labels.add(curve.label)
  if panel.unit == _PAIR_LOSS:
    label = 'log 2: no preference'
    axes.axhline(LOG_2, color=_GREY, lw=1, ls=':', label=label)
    labels.add(label)
  if labels != {''}:
    # Above the axes, where it covers no data.
    axes.legend(
      loc='lower left',
      bbox_to_anchor=(-0.02, 1.0),
      ncols=len(labels),
      frameon=False,
      fontsize=7.5,
      borderpad=0.1,
      columnspacing=1.0,
      handlelength=1.4,
      handletextpad=0.5,
    )
  axes.set_title(panel.title, loc='left', pad=20)
  axes.set_ylabel(panel.unit)
  axes.set_xlabel('optimizer step')
  axes.grid(alpha=0.25)
  axes.spines[['top', 'right']].set_visible(False)
  axes.update_datalim([(0, y) for y in panel.limits])
  axes.autoscale_view()


def _draw_curve(axes, curve: Curve, rows, *, first: bool) -> None:
  """first: whether this curve's label goes into the legend."""
  rows = [r for r in rows if math.isfinite(r.get(curve.metric, math.nan))]
  label = curve.label if first and curve.label else None
  # No line from an accuracy that is 0 by definition: it would show a trend.
  start = 1 if _is_accuracy(curve) and rows[0][curve.metric] == 0 else 0
  for part in filter(None, (rows[:start], rows[start:])):
    steps = [row['step'] for row in part]
    axes.plot(
      steps,
      [row[curve.metric] for row in part],
      color=curve.color,
      label=label,
      lw=1.0 if curve.thin else 1.6,
      alpha=0.75 if curve.thin else 1.0,
      marker=None if curve.thin and len(part) > 1 else 'o',
      ms=4,
      zorder=2 if curve.thin else 3,
    )
    label = None
    low, high = (
      [row.get(f'{curve.metric}_{end}', math.nan) for row in part]
      for end in ('low', 'high')
    )
    axes.fill_between(steps, low, high, color=curve.color, alpha=0.18, lw=0)
    axes.vlines(steps, low, high, color=curve.color, alpha=0.5, lw=1)


def _of_reward_model(names: set[str]) -> bool:
  """Whether rewards are scalars of a reward model: only these have a mean."""
  return not names.isdisjoint(('rewards/mean', 'eval/rewards/mean'))


def _of_labels(names: set[str]) -> bool:
  return not names.isdisjoint(('desirable', 'eval/desirable'))


_PAIR_LOSS = 'nats per pair'


def _loss_unit(rows) -> str:
  """The unit of the loss, from what it equals in the first row with one."""
  for row in rows:
    for prefix in ('eval/', ''):
      loss = row.get(f'{prefix}loss')
      if loss is None:
        continue
      for count, unit in (('tokens', 'token'), ('sequences', 'sequence')):
        logp = row.get(f'{prefix}logps/{count}', math.nan)
        if math.isclose(loss, -logp, rel_tol=1e-3):
          return f'nats per {unit}'
      if row['step'] == 0 and math.isclose(loss, LOG_2, abs_tol=1e-3):
        return _PAIR_LOSS
      return 'mean over examples'
  return ''


def _both(metric: str) -> list[Curve]:
  return [
    Curve(metric, 'training', _ORANGE),
    Curve(f'eval/{metric}', 'held out', _BLUE),
  ]


def _pair(prefix: str) -> list[Curve]:
  return [
    Curve(f'{prefix}/chosen', 'chosen', _BLUE),
    Curve(f'{prefix}/rejected', 'rejected', _VERMILION),
  ]


def _logps(names: set[str]) -> Panel:
  """Per token if measured, else per answer; held out if measured."""
  unit, prefix = 'answer', 'logps'
  for other, per in (
    ('eval/logps', 'answer'),
    ('logps_per_token', 'token'),
    ('eval/logps_per_token', 'token'),
  ):
    # Training batches vary more than training changes the policy, so their
    # curve would hide the held-out one: only one of the two is drawn.
    if f'{other}/chosen' in names:
      unit, prefix = per, other
  return Panel('Log-probability of answers', f'nats per {unit}', _pair(prefix))


def _reward_panels(names: set[str]) -> list[Panel]:
  accuracy, margins = _both('rewards/accuracies'), _both('rewards/margins')
  rewards = _pair('eval/rewards') + _pair('rewards')
  title, unit = 'Implicit rewards', 'β × nats'
  ordered, gap, of = 'reward chosen > rejected', 'chosen - rejected', 'pairs'
  if _of_reward_model(names):
    title, unit = 'Rewards', 'reward'
    if _of_labels(names):
      ordered, gap, of = 'sign of the reward', 'on the right side', 'examples'
  errors = _both('rewards/error')
  return [
    Panel(f'Accuracy: {ordered}', f'share of {of}', accuracy, (0, 1)),
    Panel(f'Reward margin: {gap}', unit, margins),
    Panel(title, unit, rewards),
    Panel('Error: |reward - rating|', 'mean over examples', errors, (0,)),
  ]


def _all_panels(names: set[str], loss_unit: str) -> list[Panel]:
  share, from_zero = (0, 1), (0,)
  kl = [
    Curve('samples/kl', 'full vocabulary', _BLUE),
    Curve('samples/kl_sampled', 'log-ratio of samples', _ORANGE),
  ]
  shares = [
    Curve('samples/vader_positive', 'positive (VADER)', _BLUE),
    Curve('samples/ended', 'ended', _GREEN),
    Curve('samples/distinct', 'distinct', _ORANGE),
    Curve('samples/repetition', 'repeated', _VERMILION),
  ]
  length = [Curve('samples/length', '', _BLUE)]
  rollout_kl = [
    Curve('rollouts/kl', 'log-ratio', _ORANGE),
    Curve('rollouts/kl_k3', 'k3', _GREEN),
  ]
  rollout_shares = [
    Curve('policy/clip_fraction', 'ratios clipped', _VERMILION),
    Curve('rollouts/explained_variance', 'returns explained', _BLUE),
    Curve('rollouts/ended', 'ended', _GREEN),
  ]
  norm, rate = [Curve('grad_norm', '', _ORANGE)], [Curve('lr', '', _ORANGE)]
  return [
    Panel('Loss', loss_unit, _both('loss')),
    *_reward_panels(names),
    _logps(names),
    Panel(
      'Rollouts: reward', 'reward', [Curve('rollouts/reward', '', _ORANGE)]
    ),
    Panel('Rollouts: KL to reference', 'nats per sample', rollout_kl),
    Panel('Rollouts: shares', 'share', rollout_shares, share),
    Panel(
      'Entropy of the policy',
      'nats a token',
      [Curve('policy/entropy', '', _ORANGE)],
    ),
    Panel("Policy's own samples: KL to reference", 'nats per sample', kl),
    Panel("Policy's own samples: length", 'tokens', length, from_zero),
    Panel("Policy's own samples: shares", 'share', shares, share),
    Panel('Gradient norm before clipping', 'norm', norm, from_zero),
    Panel('Learning rate', 'learning rate', rate, from_zero),
  ]
