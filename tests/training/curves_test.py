"""The picture of a run: its panels, curves, units and captions."""

import math

import matplotlib.image
import pytest

from dpo_jax.training import curves, metrics

DPO = (
  'loss',
  'rewards/accuracies',
  'rewards/margins',
  'rewards/chosen',
  'rewards/rejected',
  'logps/chosen',
  'logps/rejected',
)
ALL = (
  *DPO,
  *(f'eval/{name}' for name in DPO),
  *(f'eval/{name}_{end}' for name in DPO for end in ('low', 'high')),
  *('samples/' + name for name in ('kl', 'kl_sampled', 'length', 'ended')),
  *('samples/' + name for name in ('distinct', 'repetition')),
  'samples/vader_positive',
  'grad_norm',
  'lr',
  'tokens_per_second',
)


def _rows(names, start=0.5):
  return [{'step': s, **{name: start + s for name in names}} for s in (0, 1, 2)]


def _drawn(rows):
  return {c.metric for p in curves.panels_of(rows) for c in p.curves}


def test_what_was_measured_is_drawn():
  held_out = {'eval/logps/chosen', 'eval/logps/rejected'}
  names = {n for n in ALL if not n.endswith(('_low', '_high'))}
  names -= {'tokens_per_second', 'logps/chosen', 'logps/rejected'}
  assert _drawn(_rows(ALL)) == names
  assert len(curves.panels_of(_rows(ALL))) == 10
  assert held_out < names


@pytest.mark.parametrize(
  ('names', 'prefix', 'unit'),
  [
    (['logps'], 'logps', 'nats per answer'),
    (['logps', 'eval/logps'], 'eval/logps', 'nats per answer'),
    (
      ['logps', 'eval/logps', 'logps_per_token', 'eval/logps_per_token'],
      'eval/logps_per_token',
      'nats per token',
    ),
  ],
)
def test_log_probs_are_held_out_and_per_token_if_measured(names, prefix, unit):
  (panel,) = curves.panels_of(_rows([f'{name}/chosen' for name in names]))
  assert [c.metric for c in panel.curves] == [f'{prefix}/chosen']
  assert panel.unit == unit


@pytest.mark.parametrize(
  ('row', 'unit'),
  [
    ({'eval/loss': 0.6932, 'eval/logps/chosen': -3.0}, 'nats per pair'),
    ({'eval/loss': 0.5}, 'mean over examples'),
    ({'eval/loss': 3.2, 'eval/logps/tokens': -3.2}, 'nats per token'),
    ({'loss': 64.0, 'logps/sequences': -64.0}, 'nats per sequence'),
  ],
)
def test_unit_of_the_loss(row, unit):
  (panel, *_) = curves.panels_of([{'step': 0, **row}])
  assert panel.title == 'Loss' and panel.unit == unit


def _labels(axes):
  return {text.get_text() for text in axes.get_legend().get_texts()}


def test_log_2_is_drawn_where_the_run_starts_there():
  rows = _rows(['loss', 'eval/loss'])
  assert _labels(curves.make_figure(rows, '').axes[0]) == {
    'training',
    'held out',
  }
  rows[0]['eval/loss'] = math.log(2)
  axes = curves.make_figure(rows, '').axes[0]
  assert 'log 2: no preference' in _labels(axes)
  assert any(set(x.get_ydata()) == {math.log(2)} for x in axes.lines)


def test_no_trend_leads_away_from_the_accuracy_of_the_start():
  rows = _rows(['eval/rewards/accuracies'], start=0.0)
  (axes,) = curves.make_figure(rows, '').axes
  assert [list(x.get_xdata()) for x in axes.lines] == [[0], [1, 2]]
  assert _labels(axes) == {'held out'}


def test_missing_and_non_finite_values_leave_gaps():
  rows = _rows(['loss', 'grad_norm', 'lr'])
  rows[1]['loss'] = math.nan
  del rows[2]['loss']
  for row in rows:
    row['grad_norm'] = math.inf
  assert _drawn(rows) == {'loss', 'lr'}
  axes = curves.make_figure(rows, '').axes[0]
  assert list(axes.lines[0].get_xdata()) == [0]
  assert axes.lines[0].get_marker() == 'o'


def test_bands_are_the_intervals():
  rows = _rows(['eval/rewards/margins'])
  rows[1] |= {'eval/rewards/margins_low': -4, 'eval/rewards/margins_high': 9}
  axes = curves.make_figure(rows, '').axes[0]
  _, bars = axes.collections
  drawn = [s for s in bars.get_segments() if len(s)]
  assert [s.tolist() for s in drawn] == [[[1, -4], [1, 9]]]
  assert 'Bands: 95 %' in curves.caption(rows)
  assert 'Bands' not in curves.caption(rows[:1])


def test_caption_says_what_is_held_out():
  rows = _rows(ALL)
  assert 'Dots: held-out' in curves.caption(rows)
  rows[-1]['eval/examples'] = 256.0
  assert 'Dots: 256 held-out examples' in curves.caption(rows)
  assert 'by definition 0 at the start' in curves.caption(rows)
  assert curves.caption(_rows(['lr'])) == (
    'Thin lines: training batches, mean since the point before.'
  )


_REWARDS = ['eval/rewards/accuracies', 'eval/rewards/margins', 'rewards/chosen']


@pytest.mark.parametrize(
  ('more', 'titles', 'units', 'said'),
  [
    (
      [],
      ['reward chosen > rejected', 'chosen - rejected', 'Implicit rewards'],
      ['share of pairs', 'β × nats', 'β × nats'],
      'log(policy / reference)',
    ),
    (
      ['rewards/mean'],
      ['reward chosen > rejected', 'chosen - rejected', 'Rewards'],
      ['share of pairs', 'reward', 'reward'],
      'scalar of the reward model. Accuracy counts',
    ),
    (
      ['eval/rewards/mean', 'eval/desirable'],
      ['sign of the reward', 'on the right side', 'Rewards'],
      ['share of examples', 'reward', 'reward'],
      'is to be above 0',
    ),
  ],
)
def test_rewards_are_said_to_be_what_they_are(more, titles, units, said):
  rows = _rows(_REWARDS + more)
  panels = curves.panels_of(rows)
  assert [p.title.rpartition(': ')[2] for p in panels] == titles
  assert [p.unit for p in panels] == units
  assert said in curves.caption(rows)


def test_legends_cover_nothing_and_axes_are_named():
  rows = _rows(ALL)
  rows[0]['eval/loss'] = math.log(2)
  page = curves.make_figure(rows, 'A run')
  page.draw_without_rendering()
  boxes = [axes.get_window_extent() for axes in page.axes]
  legends = [a.get_legend() for a in page.axes if a.get_legend()]
  assert len(legends) == 7
  for legend in legends:
    extent = legend.get_window_extent()
    assert not any(extent.overlaps(box) for box in boxes)
    assert page.bbox.x0 <= extent.x0 and extent.x1 <= page.bbox.x1
  for axes in page.axes:
    assert axes.get_xlabel() == 'optimizer step'
    assert axes.get_ylabel() and axes.get_title('left')
    assert axes.lines


def test_draws_a_directory(tmp_path):
  for row in _rows(DPO):
    metrics.append_jsonl(tmp_path / 'metrics.jsonl', row)
  path = tmp_path / 'curves.png'
  for _ in range(2):
    curves.draw(tmp_path, path, title='A run')
  height, width, _ = matplotlib.image.imread(path).shape
  assert height > 500 and width > 1000
  assert {p.name for p in tmp_path.iterdir()} == {'metrics.jsonl', path.name}


def test_nothing_to_draw(tmp_path):
  path = tmp_path / 'curves.png'
  with pytest.raises(ValueError, match='No metric in 3 rows'):
    curves.draw(_rows(['tokens_per_second']), path, title='')
  assert not path.exists()
