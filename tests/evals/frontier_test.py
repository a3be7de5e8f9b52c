"""Rewards at the same KL: by hand, never extrapolated, paired by prompts."""

import numpy as np
import pytest

from dpo_jax.evals import frontier, statistics

RNG = np.random.default_rng(0)


def _run(kls, rewards, *, prompts=80, noise=0.3):
  """Points whose means are these, exactly; prompts differ in difficulty."""
  easy = RNG.normal(size=prompts)
  points = []
  for step, (kl, reward) in enumerate(zip(kls, rewards)):
    x, y = (RNG.normal(size=(2, prompts)) * noise) + easy
    points.append(
      frontier.Point(
        step,
        tuple(range(prompts)),
        x - x.mean() + kl,
        y - y.mean() + reward,
      )
    )
  return points


def test_a_point_is_a_mean_of_each_prompts_samples():
  rows = [
    dict(prompt=p, kl=kl, score=s)
    for p, kl, s in [('x', 1, 2), ('y', 3, 4), ('x', 5, 8)]
  ]
  p = frontier.point(7, rows, 'score')
  assert p.step == 7 and p.units == ('x', 'y')
  assert p.kl_U.tolist() == [3, 3] and p.reward_U.tolist() == [5, 4]
  alone = frontier.point(0, [row | dict(prompt='x') for row in rows], 'score')
  assert alone.units == (0, 1, 2) and alone.reward_U.tolist() == [2, 4, 8]
  with pytest.raises(ValueError, match="step 3 have no 'vader'"):
    frontier.point(3, rows, 'vader')


@pytest.mark.parametrize(
  ('kl', 'reward'),
  [(0.0025, 1.1), (0.25, 2), (1, 3), (2.25, 4), (3.9601, 4.98), (5, None)],
)
def test_rewards_are_interpolated(kl, reward):
  """Linear in the root of the KL, from (0, 1) to (4, 5); it falls again."""
  points = _run([0, 4, 2], [1, 5, 9])
  found = frontier.at_kl(points, kl)
  if reward is None:
    assert found is None
  else:
    assert found.mean() == pytest.approx(reward)


def test_reward_and_kl_of_a_straight_path_are_met_between_evaluations():
  """Of N(t, 1) from N(0, 1): the KL is t^2 / 2, the mean of a reward x is t."""
  points = _run([t**2 / 2 for t in (0, 1, 4)], [0, 1, 4])
  for t in (0.5, 1.7, 3.9):
    assert frontier.at_kl(points, t**2 / 2).mean() == pytest.approx(t)
  # The estimate of a KL at the start may lie below 0.
  points = _run([-0.01, 4], [0, 2])
  assert frontier.at_kl(points, 1).mean() == pytest.approx(1)


def test_runs_are_matched_where_all_of_them_are():
  a, b = _run([0, 2, 10], [0, 1, 2]), _run([0, 4], [0, 3])
  found = frontier.match([a, b], draws=500)
  assert [m.kl for m in found] == pytest.approx([1, 2, 3, 4])
  for m in found:
    expected = [frontier.at_kl(points, m.kl).mean() for points in (a, b)]
    assert [x[0] for x in m.rewards] == pytest.approx(expected)
    difference, low, high = m.differences[1]
    assert difference == pytest.approx(expected[1] - expected[0])
    assert low < difference < high
    assert m.differences[0] == (0, 0, 0)
  assert found[0].rewards[0] == statistics.bootstrap(
    frontier.at_kl(a, found[0].kl), seed=0, draws=500
  )
  # a begins its second line at a KL of 2, b has one line alone.
  assert [m.from_start for m in found] == [
    [kl <= 2, True] for kl in (1, 2, 3, 4)
  ]
  assert frontier.match([a, _run([20, 30], [0, 1])], draws=10) == []
  with pytest.raises(ValueError, match='different prompts'):
    frontier.match([a, _run([0, 4], [0, 3], prompts=9)])


def test_each_run_is_compared_as_far_as_it_goes():
  runs = [_run([0, 8], [0, 1]), _run([0, 2], [0, 1]), _run([0, 6], [0, 1])]
  found = frontier.match(runs, draws=100)
  assert [m.kl for m in found] == [0.5, 1, 1.5, 2, 3, 4.5, 6]
  for m in found:
    there = [True, m.kl <= 2, True]
    assert [x is not None for x in m.rewards] == there
    assert [x is not None for x in m.differences] == there
