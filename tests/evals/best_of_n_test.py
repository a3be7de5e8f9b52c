"""Best-of-n: which sample is chosen, and the curve by number of samples."""

import json

import numpy as np
import pytest

from dpo_jax.evals import best_of_n, statistics


def test_the_first_of_the_best_is_chosen():
  rows = [dict(text=t, fun=x) for t, x in zip('abcdef', (1, 3, 3, -1, -2, -1))]
  found = best_of_n.choose(rows, 3, 'fun')
  assert found == [
    dict(text='b', fun=3, best_of=3),
    dict(text='d', fun=-1, best_of=3),
  ]
  assert best_of_n.choose(rows, 1, 'fun') == [{**r, 'best_of': 1} for r in rows]


@pytest.mark.parametrize(
  ('m', 'ns'),
  [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])],
)
def test_a_curve_has_powers_of_two_and_all_samples(m, ns):
  scores = np.random.default_rng(m).normal(size=(5, m))
  curve = best_of_n.make_curve(scores, 'fun')
  assert (curve.reward, curve.num_prompts, curve.num_samples) == ('fun', 5, m)
  assert [row['n'] for row in curve.rows] == ns
  for row in curve.rows:
    best = statistics.best_of_n(scores, row['n']).astype(np.float64)
    half = 1.959964 * best.std(ddof=1) / np.sqrt(5)
    assert row['mean'] == pytest.approx(best.mean())
    assert row['low'] == pytest.approx(best.mean() - half)
    assert row['high'] == pytest.approx(best.mean() + half)
    assert row['kl_bound'] == statistics.best_of_n_kl_bound(row['n'])


def test_a_curve_and_its_picture_are_written(tmp_path):
  curve = best_of_n.make_curve(np.arange(12.0).reshape(3, 4), 'fun')
  best_of_n.write(curve, tmp_path / 'a' / 'curve.json')
  assert json.loads((tmp_path / 'a/curve.json').read_text()) == curve._asdict()
  picture = (tmp_path / 'a' / 'curve.png').read_bytes()
  assert picture.startswith(b'\x89PNG')
  axes = best_of_n.make_figure(curve).axes
  for x, (of, name) in zip(axes, (('n', 'n'), ('kl_bound', 'KL'))):
    (line,) = x.get_lines()
    assert line.get_xdata().tolist() == [row[of] for row in curve.rows]
    assert line.get_ydata().tolist() == [row['mean'] for row in curve.rows]
    assert name in x.get_xlabel()
  assert 'fun' in axes[0].get_ylabel()
