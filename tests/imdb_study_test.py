"""experiments/imdb: splits, labels, ceiling, frontiers, tuning and results."""

import itertools
import json

import numpy as np
import pytest

from dpo_jax import online_settings, pairs, registry, settings
from dpo_jax.evals import frontier
from experiments.imdb import (
  ceiling,
  frontiers,
  pages,
  results,
  scale,
  splits,
  tuning,
)


def test_parts_share_no_film():
  rng = np.random.default_rng(0)
  reviews = [
    splits.Review(f'{i}', i % 2, f'film {rng.integers(200)}')
    for i in range(3000)
  ]
  shares = {'a': 0.6, 'b': 0.25, 'c': 0.15}
  found = splits.split(reviews, shares, rng)
  texts = [r.text for part in found.values() for r in part]
  assert sorted(texts) == sorted(r.text for r in reviews)
  films = {name: {r.film for r in part} for name, part in found.items()}
  for first, second in itertools.combinations(films.values(), 2):
    assert not first & second
  count = sum(map(len, films.values()))
  for name, share in shares.items():
    assert abs(len(films[name]) - share * count) <= 1


def test_labels_agree_as_often_as_they_are_to():
  rng = np.random.default_rng(1)
  scores_BxK = rng.normal(size=(400, 4)) * 3
  factor = scale.find_factor(scores_BxK)
  rows = [
    {'prompt': f'{b}', 'completions': list('abcd'), 'scores': scores}
    for b, scores in enumerate(scores_BxK.tolist())
  ]
  drawn = scale.drawn_labels(rows, factor, rng)
  right = [
    row['scores'][i] > row['scores'][j]
    for row, labelled in zip(rows, drawn)
    for i, j in labelled['preferences']
  ]
  assert len(right) == 400 * 6
  assert np.mean(right) == pytest.approx(0.8, abs=0.03)
  rows[0]['completions'] = list('abca')
  equal = scale.drawn_labels(rows[:1], factor, rng)[0]
  assert len(equal['preferences']) == 5


def test_the_ceiling_of_normal_rewards_is_the_closed_form():
  """exp(r / beta) shifts N(0, s) by s^2 / beta, at a KL of s^2 / (2 beta^2)."""
  scores_BxM = 1.5 * np.random.default_rng(2).normal(size=(50, 20_000))
  rows = ceiling.ceiling(scores_BxM)
  kept = [row for row in rows if row['beta'] > 1]
  assert len(kept) > 10
  for row in kept:
    shift = 1.5**2 / row['beta']
    assert row['reward'] == pytest.approx(shift, abs=0.02)
    assert row['kl'] == pytest.approx(shift**2 / (2 * 1.5**2), abs=0.02)
    # Of weights exp(x), x normal with variance v: n exp(-v).
    size = 20_000 * np.exp(-((1.5 / row['beta']) ** 2))
    assert row['sample_size'] == pytest.approx(size, rel=0.15)


def _run(kls, rewards, units=8, seed=0):
  rng = np.random.default_rng(seed)
  noise = rng.normal(size=units)
  noise -= noise.mean()
  return [
    frontier.Point(i, tuple(range(units)), np.full(units, k), r + noise)
    for i, (k, r) in enumerate(zip(kls, rewards))
  ]


def test_a_methods_best_setting_is_one_that_all_seeds_reach():
  settings = {
    'near': [_run([0, 1], [0, 1]), _run([0, 1.2], [0, 1.2])],
    'far': [_run([0, 4], [0, 2]), _run([0, 4], [0, 2])],
    'uneven': [_run([0, 9], [0, 90]), _run([0, 0.1], [0, 1])],
  }
  at = frontiers.at_kl(settings, 0.5)
  assert at.setting == 'near' and at.of_seeds == pytest.approx([0.5, 0.5])
  at = frontiers.at_kl(settings, 2)
  assert at.setting == 'far' and at.of_seeds == pytest.approx([1, 1])
  assert frontiers.at_kl(settings, 5) is None


@pytest.mark.parametrize(('of_seeds', 'of_prompts'), [(2.0, 1.0), (0.2, 5.0)])
def test_the_bootstrap_of_seeds_and_prompts_covers(of_seeds, of_prompts):
  """Means of normal seeds and prompts, one of which matters most."""
  rng = np.random.default_rng(3)
  hits = 0
  for i in range(150):
    seeds = of_seeds * rng.normal(size=(10, 1))
    prompts = of_prompts * rng.normal(size=(1, 60))
    x_SxU = 2 + seeds + prompts + rng.normal(size=(10, 60))
    _, low, high = frontiers.bootstrap(x_SxU, seed=i, draws=300)
    hits += low < 2 < high
  assert 0.85 <= hits / 150 <= 0.99


def test_the_bootstrap_of_a_difference_is_paired_by_prompts():
  rng = np.random.default_rng(4)
  prompts = 100 * rng.normal(size=(1, 60))
  a, b = (prompts + rng.normal(size=(4, 60)) for _ in range(2))
  mean, low, high = frontiers.bootstrap(a, b, draws=300)
  assert mean == pytest.approx(a.mean() - b.mean()) and high - low < 2


def test_dominated_points_have_less_reward_at_more_kl():
  points = _run([0.1, 1, 2, 3], [0, 1, 1, 5])
  others = _run([0.9, 2.5], [0.9, 4])
  assert frontiers.dominated(points, others) == (0, 3)
  others = _run([0.9, 2.5], [1.1, 6])
  assert frontiers.dominated(points, others) == (3, 3)


def test_tuning_takes_what_is_best_at_the_kl(tmp_path, monkeypatch):
  monkeypatch.setattr(results, 'RESULTS', tmp_path)
  for method in tuning.METHODS:
    for i, (name, _) in enumerate(tuning.configurations(method)):
      # The last would be best, but stops short; of one method all do.
      reach = 0.5 if i == 3 or method == 'preferred_ft' else 2.0
      points = [
        {'step': 0, 'kl': [0.0], 'reward': [0.0]},
        {'step': 1, 'kl': [reach], 'reward': [[1.0, 3.0, 2.0, 9.0][i]]},
      ]
      path = results.path_of('tiny', f'tuning/{name}')
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_text(json.dumps({'points': points, 'cpu_seconds': 1}))
  tuning.choose('tiny')
  assert tuning.chosen('tiny', 'dpo') == {'schedule.peak': tuning.PEAKS[1]}
  tried = json.loads(tuning.path_of('tiny').read_text())['dpo']['tried']
  assert [x['reward_at_kl'] for x in tried] == [0.5, 1.5, 1.0, None]
  assert tuning.chosen('tiny', 'preferred_ft') == {
    'schedule.peak': tuning.PEAKS[3]
  }


def test_results_of_another_reward_are_not_mixed(tmp_path, monkeypatch):
  monkeypatch.setattr(results, 'RESULTS', tmp_path)
  (tmp_path / 'tiny').mkdir()
  for name, reward in (('dpo_1_s0', 'x'), ('ppo_3_s0', 'y')):
    path = results.path_of('tiny', name)
    path.write_text(json.dumps({'judged_by': {'reward': reward}, 'points': []}))
  with pytest.raises(ValueError, match='other prompts or rewards: dpo_1_s0'):
    results.read('tiny')


@pytest.mark.parametrize('size', pages.SCALES)
@pytest.mark.parametrize('stage', pages.STAGES)
def test_pages_are_pages(size, stage):
  page = pages.get_config(f'{size}/{stage}').to_dict()
  if 'num_completions' in page:
    registry.bind(pairs.check, page, 'the config')()
  elif 'rollouts' in page:
    online_settings.of(page)
  else:
    settings.of(page)
