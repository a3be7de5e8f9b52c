"""experiments/imdb: splits, labels, ceiling, frontiers, tuning and results."""

import itertools
import json
import pathlib
import shutil

import numpy as np
import pytest

from dpo_jax import data, online_settings, pairs, registry, rewards, settings
from dpo_jax.evals import frontier
from experiments import scheduler
from experiments.imdb import (
  ablation_tables,
  ablations,
  ceiling,
  frontiers,
  job,
  jobs,
  labels,
  pages,
  places,
  probe,
  report,
  results,
  reward,
  sampled,
  splits,
  tuning,
)
from experiments.imdb.job import Job
from tests import study_commands, tiny

INNER_PEAKS = tuning.PEAKS['tiny'][1:-1]


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
  factor = reward.find_factor(scores_BxK)
  rows = [
    {'prompt': f'{b}', 'completions': list('abcd'), 'scores': scores}
    for b, scores in enumerate(scores_BxK.tolist())
  ]
  drawn = labels.draw(rows, labels.bradley_terry(factor), rng)
  right = [
    row['scores'][i] > row['scores'][j]
    for row, labelled in zip(rows, drawn)
    for i, j in labelled['preferences']
  ]
  assert len(right) == 400 * 6
  assert np.mean(right) == pytest.approx(0.8, abs=0.03)
  rows[0]['completions'] = list('abca')
  equal = labels.draw(rows[:1], labels.bradley_terry(factor), rng)[0]
  assert len(equal['preferences']) == 5


def test_labels_are_drawn_with_the_factor_of_their_block(kept, monkeypatch):
  place = places.Place('small', 4)
  factor = pathlib.Path(place.of_reward('reward/factor.json'))
  _write(factor, {'factor': 100.0})
  rows = {'prompt': 'a', 'completions': ['x', 'y'], 'scores': [0.0, 1.0]}
  folder = pathlib.Path(place.folder('pairs'))
  _write(folder / 'pairs.jsonl', rows)
  flags = ['labels', '--scale=small', '--block=4']
  monkeypatch.setattr('sys.argv', flags)
  labels.main()
  drawn = json.loads((folder / 'drawn.jsonl').read_text())
  assert drawn['preferences'] == [[1, 0]]


@pytest.mark.parametrize('rate', [0.0, 0.2, 0.4])
def test_a_share_of_labels_is_flipped(rate):
  rng = np.random.default_rng(5)
  rows = [
    {'prompt': f'{b}', 'completions': list('abcd'), 'scores': scores}
    for b, scores in enumerate(rng.normal(size=(500, 4)).tolist())
  ]
  drawn = labels.draw(rows, labels.flipped(rate), rng)
  wrong = [
    row['scores'][i] < row['scores'][j]
    for row, labelled in zip(rows, drawn)
    for i, j in labelled['preferences']
  ]
  assert len(wrong) == 500 * 6
  assert np.mean(wrong) == pytest.approx(rate, abs=0.03 if rate else 0)


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


def test_a_methods_best_setting_is_one_that_all_blocks_reach():
  settings = {
    'near': {0: _run([0, 1], [0, 1]), 1: _run([0, 1.44], [0, 1.2])},
    'far': {0: _run([0, 4], [0, 1.6]), 1: _run([0, 4], [0, 1.6])},
    'uneven': {0: _run([0, 9], [0, 90]), 1: _run([0, 0.1], [0, 1])},
    'partial': {0: _run([0, 9], [0, 90])},
  }
  at = frontiers.at_kl(settings, 0.25)
  assert at.setting == 'near'
  assert at.rewards_SxU.mean(axis=1) == pytest.approx([0.5, 0.5])
  at = frontiers.at_kl(settings, 2.25)
  assert at.setting == 'far'
  assert at.rewards_SxU.mean(axis=1) == pytest.approx([1.2, 1.2])
  assert frontiers.at_kl(settings, 5) is None


def test_differences_are_of_the_blocks_that_both_have():
  a = frontiers.AtKl('x', {0: np.array([1.0, 2.0]), 2: np.array([5.0, 6.0])})
  b = frontiers.AtKl('y', {1: np.array([9.0, 9.0]), 2: np.array([1.0, 1.0])})
  assert a.minus(b).tolist() == [[4.0, 5.0]]
  assert a.minus(frontiers.AtKl('z', {1: np.array([1.0, 1.0])})) is None


@pytest.mark.parametrize(('of_blocks', 'of_prompts'), [(2.0, 1.0), (0.2, 5.0)])
def test_the_bootstrap_of_blocks_and_prompts_covers(of_blocks, of_prompts):
  """Means of normal blocks and prompts, one of which matters most."""
  rng = np.random.default_rng(3)
  hits = 0
  for i in range(150):
    blocks = of_blocks * rng.normal(size=(10, 1))
    prompts = of_prompts * rng.normal(size=(1, 60))
    x_SxU = 2 + blocks + prompts + rng.normal(size=(10, 60))
    mean, low, high = frontiers.bootstrap(x_SxU, seed=i, draws=300)
    assert mean == pytest.approx(x_SxU.mean())
    hits += low < 2 < high
  assert 0.85 <= hits / 150 <= 0.99


def test_dominated_points_have_less_reward_at_more_kl():
  points = _run([0.1, 1, 2, 3], [0, 1, 1, 5])
  others = _run([0.9, 2.5], [0.9, 4])
  assert frontiers.dominated(points, others) == (0, 3)
  others = _run([0.9, 2.5], [1.1, 6])
  assert frontiers.dominated(points, others) == (3, 3)


@pytest.fixture
def kept(tmp_path, monkeypatch):
  """A folder for results, and one for runs."""
  monkeypatch.setattr(results, 'RESULTS', tmp_path / 'results')
  monkeypatch.setattr(places, 'RUNS', str(tmp_path / 'runs'))
  return tmp_path


def _write(path, value):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(value))


def test_tuning_takes_what_is_best_at_the_kl(kept):
  for method in tuning.METHODS:
    assert tuning.chosen('tiny', method) is None
    for i, peak in enumerate(INNER_PEAKS):
      # The last would be best, but stops short; of one method all do.
      none = method == 'preferred_ft'
      reach = 0.5 if i == 3 or none else 4.0
      ends = [1.0, 3.0, 5.0, 4.0] if none else [1.0, 3.0, 2.0, 9.0]
      points = [
        {'step': 0, 'kl': [0.0], 'reward': [0.0]},
        {'step': 1, 'kl': [reach], 'reward': [ends[i]]},
      ]
      path = tuning.path_of_run('tiny', method, peak)
      _write(path, {'points': points, 'cpu_seconds': 1})
  tuning.choose('tiny')
  peaks = [{'schedule.peak': peak} for peak in INNER_PEAKS]
  assert tuning.chosen('tiny', 'dpo') == peaks[1]
  assert tuning.chosen('tiny', 'dpo_sure') == peaks[1]
  tried = json.loads(tuning.path_of('tiny').read_text())['dpo']['tried']
  assert [x['reward_at_kl'] for x in tried] == [0.5, 1.5, 1.0, None]
  assert tuning.chosen('tiny', 'preferred_ft') == peaks[2]
  # At 4 nats the second alone is best; those that stop short have no far runs.
  assert tuning.chosen('tiny', 'dpo_far') == peaks[1]
  assert tuning.chosen('tiny', 'preferred_ft_far') is None
  known = jobs.of_scale('tiny', [0])
  far = known['tiny/0/ppo_rm_far_12']
  assert 'pages.py:tiny/0/ppo_rm' in far.command[2]
  assert {'tiny/0/reward_model'} <= {*far.needs}


@pytest.mark.parametrize(
  ('best', 'beyond'), [(3e-5, 1e-5), (1e-4, None), (1e-3, 3e-3)]
)
def test_tuning_goes_on_beyond_an_outer_best(kept, best, beyond):
  def keep(peak, reward):
    points = [
      {'step': i, 'kl': [2.0 * i], 'reward': [reward * i]} for i in (0, 1)
    ]
    path = tuning.path_of_run('tiny', 'dpo', peak)
    _write(path, {'points': points, 'cpu_seconds': 1})

  for peak in INNER_PEAKS:
    assert tuning.peaks('tiny', 'dpo') == INNER_PEAKS
    keep(peak, 2 if peak == best else 1)
  tuning.choose('tiny')
  if beyond:
    assert tuning.chosen('tiny', 'dpo') is None
    known = jobs.of_scale('tiny', [])
    assert f'--config.schedule.peak={beyond}' in (
      known[f'tiny/0/tuning/dpo_{beyond:g}'].command
    )
    keep(beyond, 3)
    assert tuning.peaks('tiny', 'dpo') == (*INNER_PEAKS, beyond)
    tuning.choose('tiny')
  assert tuning.chosen('tiny', 'dpo') == {'schedule.peak': beyond or best}


def test_final_runs_wait_for_the_tuning_of_their_method(kept):
  def methods():
    found = jobs.of_scale('tiny', [0], None).values()
    names = [
      j.name for j in found if j.result and 'tuning' not in j.result.parts
    ]
    return {name.split('/')[2].removesuffix('_6') for name in names}

  assert methods() == {'ceiling', 'probes'}
  chosen = {'rloo': {'chosen': {'schedule.peak': 0.1}}}
  _write(tuning.path_of('tiny'), chosen)
  assert methods() == {'ceiling', 'probes', 'rloo'}
  (job,) = [
    j for j in jobs.of_scale('tiny', [0], None).values() if 'rloo_6' in j.name
  ]
  assert '--config.schedule.peak=0.1' in job.command
  assert '--config.method.target_kl=6.0' in job.command


def test_what_a_result_needs_comes_first_and_only_that(kept):
  known = jobs.of_scale('small', [1], None)
  left = scheduler.to_run(known, ['small/0/tuning/ppo_rm_1e-05'])
  assert 'small/0/reward_model' in left and 'tiny/0/labels_2' in left
  assert all(n in known for job in known.values() for n in job.needs)
  assert not [n for n in left if n.startswith(('tiny/1/', 'small/1/'))]
  assert 'small/0/tuning/dpo_1e-05' not in left
  # A stage that is there needs nothing.
  for needed in known['small/0/tuning/ppo_rm_1e-05'].needs:
    known[needed].leaves.mkdir(parents=True)
  left = scheduler.to_run(known, ['small/0/tuning/ppo_rm_1e-05'])
  assert list(left) == ['small/0/tuning/ppo_rm_1e-05']
  # A result that is there is not made again.
  _write(known['small/0/tuning/ppo_rm_1e-05'].result, {})
  assert not scheduler.to_run(known, ['small/0/tuning/ppo_rm_1e-05'])


@pytest.mark.parametrize('ablated', [False, True])
def test_the_commands_have_options_that_pages_take(kept, ablated):
  same = {'schedule.peak': 0.1}
  methods = {m: {'chosen': same, 'far': same} for m in tuning.METHODS}
  _write(tuning.path_of('tiny'), methods)
  known = jobs.of_scale('tiny', [0], ablated=ablated)
  names = [x for x in known if x.startswith('tiny/0/')]
  assert all(n in known for job in known.values() for n in job.needs)
  for name in names:
    command = known[name].command
    if command[1] == 'dpo_jax.train':
      page = study_commands.page_of(command, pages.get_config)
      study_commands.check('dpo_jax.train', page)
  found = {name.split('/')[2] for name in names if known[name].result}
  if ablated:
    assert found == {
      'plain', 'noise', 'references', 'prompts', 'anchors', 'seeds',
      'off_policy', 'tuning',
    }  # fmt: skip
  else:
    assert {'dpo_0.1', 'ppo_12', 'ppo_rm_3', 'probes', 'ceiling'} <= found
    assert {'dpo_far_0.1', 'ppo_far_12', 'ppo_rm_far_12'} <= found
  for name in names:
    config, _, stage = known[name].command[2].partition(':')
    read = str(pages.get_config(stage)) if config.endswith('.py') else ''
    assert ('data' in known[name].needs) == (f'{places.RUNS}/data/' in read)


def test_tuning_has_prompts_and_a_seed_of_its_own(kept):
  _write(
    tuning.path_of('tiny'),
    {'dpo': {'chosen': {'schedule.peak': 0.1}, 'far': None}},
  )
  known = jobs.of_scale('tiny', [0])
  assert known['tiny/0/dpo_0.1'].prompts == 'evaluate'
  tuned = known['tiny/0/tuning/dpo_0.001']
  assert tuned.prompts == 'tune'
  assert {'--config.seed=0', '--config.epochs=0.5'} <= {*tuned.command}
  (read,) = [x for x in tuned.command if 'eval_data.path' in x]
  assert read.endswith('/tiny/0/tune/pairs.jsonl')
  assert {'tiny/0/tune', 'tiny/0/labels_2'} <= {*tuned.needs}
  assert 'tiny/0/evaluate' not in tuned.needs
  assert places.Place('tiny', 0).seed != 0
  page = pages.get_config('tiny/0/tune')
  assert page.data.path == f'{places.RUNS}/data/tune'


def test_ablations_wait_for_tuning(kept):
  found = list(ablations.of_block(places.Place('tiny', 3)))
  assert found and not [x for x in found if x.result]


@pytest.fixture(scope='module')
def drawn_from(tmp_path_factory):
  """A folder with a tiny model."""
  path = tmp_path_factory.mktemp('drawn')
  tiny.write(path)
  return path


def test_probes_and_the_ceiling_sample_what_evaluations_do(
  drawn_from, kept, monkeypatch
):
  place = places.Place('tiny', 3)
  reference = pathlib.Path(place.folder('sft/params'))
  reference.parent.mkdir(parents=True)
  shutil.copytree(drawn_from / 'model', reference)
  path = pathlib.Path(place.folder('evaluate/pairs.jsonl'))
  path.parent.mkdir()
  rows = [
    {'prompt': row['prompt'], 'completions': ['a', 'b'], 'scores': [1, 0]}
    for row in tiny.rows(1, 8)
  ]
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  vader = rewards.build('vader')

  def length(prompts, texts):
    return np.float32([len(text) for text in texts])

  monkeypatch.setattr(
    sampled, 'judges', lambda place: sampled.Judges(length, vader, vader, vader)
  )
  monkeypatch.setattr(places, 'NEW_TOKENS', 4)
  monkeypatch.setattr(probe, 'PRODUCTS', 3)
  monkeypatch.setattr(probe, 'TEMPERATURES', (0.0, 1.0))
  policy = sampled.load(place, 'sft')
  prompts = sampled.prompts(place, policy.tokenizer, 256)
  run = settings.of(pages.get_config('tiny/3/dpo').to_dict())
  records = data.load(run.eval_data, tokenizer=policy.tokenizer)
  assert prompts == run.samples.sampler.choose(records)[0]
  found = probe.probe(place, 'sft')
  assert [(x['prompts'], x['temperature'], x['seed']) for x in found] == [
    ('films', 0.0, 0),
    ('films', 1.0, 0),
    *(('films', 1.0, seed) for seed in (1, 2, 3)),
    ('products', 1.0, 0),
  ]
  assert [len(x['reward']) for x in found] == [len(prompts)] * 5 + [3]
  rows = sampled.draw(policy, prompts, seed=2)
  assert found[3]['reward'] == [len(row['text']) for row in rows]
  assert found[3]['length'] == pytest.approx(
    np.mean([row['length'] for row in rows]), abs=1e-3
  )
  assert found[2]['reward'] != found[3]['reward']
  monkeypatch.setattr(ceiling, 'PROMPTS', 2)
  monkeypatch.setattr(ceiling, 'SAMPLES', 3)
  scores_BxM = ceiling._scores(place)
  rows = sampled.draw(policy, prompts[:2], seed=place.seed, num_samples=3)
  assert scores_BxM.ravel().tolist() == [len(row['text']) for row in rows]


def _judge(place, reward='r'):
  """What results are judged by: files that stages leave."""
  for folder, text in (
    (place.folder('sft/params'), 's'),
    (place.of_reward('reward/params'), reward),
  ):
    path = pathlib.Path(folder, 'model.safetensors')
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
  _write(pathlib.Path(place.folder('evaluate/pairs.jsonl')), {'prompt': 'a'})


def test_results_of_a_rebuilt_stage_are_not_mixed(kept):
  place = places.Place('tiny', 0)
  _judge(place)
  path = results.path_of(place, 'dpo_1')
  command = job.trained(place, 'dpo', [], run='dpo_1', result=path)
  judged = {'judged_by': results.judged_by(place), 'points': []}
  _write(command.result, judged)
  results.check_block(command)
  _write(results.path_of(place, 'stages'), {'sft': {}})
  assert list(results.read('tiny')) == [0]
  _judge(place, 'another')
  with pytest.raises(ValueError, match='built again'):
    results.check_block(command)
  with pytest.raises(ValueError, match='built again'):
    results.origin('ceiling', place, results.path_of(place, 'ceiling'))
  again = {'judged_by': results.judged_by(place), 'points': []}
  _write(results.path_of(place, 'ppo_3'), again)
  with pytest.raises(ValueError, match='other references, rewards or prompts'):
    results.read('tiny')
  # Another block is another reference and another reward.
  results.path_of(place, 'ppo_3').unlink()
  _write(results.path_of(places.Place('tiny', 1), 'ppo_3'), again)
  assert list(results.read('tiny')) == [0, 1]


def _result(kls, rewards, cpu_seconds=60):
  points = [
    {'step': i, 'kl': [k, k], 'reward': [r - 1, r + 1]}
    | dict(positive=0.5, labels_2=r, vader=0.1, length=9, ended=1, repetition=0)
    for i, (k, r) in enumerate(zip(kls, rewards))
  ]
  return {'points': points, 'cpu_seconds': cpu_seconds, 'peak_gb': 1.5}


def test_tables_say_what_the_results_hold(kept):
  runs = report.by_method(
    {
      0: {
        'dpo_0.1': _result([0, 4], [0, 4]),
        'ppo_rm_3': _result([0, 1, 6], [0, 1, 2.5]),
      },
      1: {'dpo_0.1': _result([0, 4], [0, 2], 180)},
    }
  )
  assert list(runs) == ['dpo', 'ppo_rm']
  made = report.table(runs)
  # Means of blocks 2 and 1 at a KL of 1.
  assert '| DPO | 2 | ' in made[2] and '(2.00, 1.00)' in made[2]
  # In block 0 DPO's end dominates one of PPO's two points.
  assert '| PPO, learned reward | 1 of 2 | 0 of 1 |' in report.shares(runs)
  # PPO against DPO of block 0 alone.
  assert made[-1].split(' | ')[2].startswith('-1.00')
  assert '| 2 | 4.00 | 3.00 | 0.50 | 3.00 |' in report.ends(runs)[2]
  _write(
    results.path_of(places.Place('tiny', 0), 'stages'),
    {'sft': {'cpu_seconds': 120, 'peak_gb': 2.0}},
  )
  made = report.costs('tiny', runs)
  assert made[2] == '| stage sft | 1 | 2.0 | 2.0 |'
  assert made[3] == '| DPO | 2 | 2.0 | 1.5 |'
  bounds = {
    'ceiling': [{'kl': 1, 'reward': 2, 'sample_size': 99}],
    'best_of_n': [{'kl_bound': 1, 'mean': 1.5}],
  }
  drawn = report.draw(runs, [bounds], 'tiny')
  labels = drawn.axes[0].get_legend_handles_labels()[1]
  assert labels == ['ceiling', 'best of N', 'DPO', 'PPO, learned reward']


def test_tables_of_ablations_say_what_the_results_hold(kept):
  for block, end in ((0, 2.0), (1, 4.0)):
    place = places.Place('tiny', block)
    made = _result([0, end**2], [0, end])
    made['held_out'] = [
      {'step': 0, 'logps/chosen': -80.0},
      {'step': 9, 'logps/chosen': -80.0 - end, 'rewards/accuracies': 0.5},
    ]
    _write(results.path_of(place, 'plain/dpo'), made)
    made = _result([0, 0.5], [0, end]) | {'held_out': []}
    _write(results.path_of(place, 'noise/ppo_rm_0.2'), made)
    sampled_twice = [
      dict(prompts='films', temperature=1.0, reward=[end, 0.0])
      | dict(vader=0.5, repetition=0.0)
    ] * 2
    found = {'samples': sampled_twice}
    _write(results.path_of(place, 'probes/dpo_1'), found)
  found = ablation_tables.read('tiny')
  assert set(found) == {'plain', 'noise', 'probes'}
  rows = ablation_tables.ablation(found['plain'] | found['noise'])
  cells = rows[2].split(' | ')
  assert cells[1:6] == [
    '10.00 (4.00, 16.00)',
    '3.00 (2.00, 4.00)',
    '1.00 (1.00, 1.00)',
    '1.41 (1.41, 1.41)',
    '0.50 (0.50, 0.50)',
  ]
  assert cells[6] == '-3.0 (-2.0, -4.0)'
  # No point at a KL that a run does not reach; PPO has no held-out pairs.
  assert rows[3].split(' | ')[3:7] == ['', '', '', '']
  rows = ablation_tables.probed(found['probes'])
  assert rows[2].startswith(
    '| dpo_1 | films | 1 | 4 | 1.50 (1.00, 1.00, 2.00, 2.00) | 0.50'
  )


def test_agreement_is_over_pairs_of_a_prompt():
  rows = [
    {'prompt': prompt, 'reward_model': r}
    for prompt, r in [
      ('a', 1),
      ('b', 5),
      ('a', 2),
      ('b', 5),
      ('c', 0),
      ('c', 9),
    ]
  ]
  with_r = np.array([0.1, 7.0, 0.2, 8.0, 0.0, 1.0])
  found = probe.agreement(rows, {'x': with_r, 'y': -with_r, 'z': 0 * with_r})
  # Of b, r is equal.
  assert found == {'pairs': 2, 'x': 1.0, 'y': 0.0, 'z': 0.5}
  made = {
    'dpo_1': {0: {'own_pairs': {'implicit': 0.5, 'learned': 1, 'pairs': 2}}}
  }
  made['sft'] = {0: {}}
  assert ablation_tables.own_pairs(made)[2:] == ['| dpo_1 | 2 | 0.50 | 1.00 |']


def test_results_keep_held_out_metrics(kept):
  rows = [
    {'step': 0, 'eval/loss': 0.7, 'eval/logps/chosen': -3.0, 'eval/other': 1},
    {'step': 1, 'loss': 0.6},
    {'step': 2, 'eval/loss': 0.5, 'eval/logps/chosen': -4.00001},
  ]
  run = kept / 'runs' / 'x'
  run.mkdir(parents=True)
  (run / 'metrics.jsonl').write_text(
    ''.join(json.dumps(row) + '\n' for row in rows)
  )
  found = results.held_out(run)
  assert found == [
    {'step': 0, 'loss': 0.7, 'logps/chosen': -3.0},
    {'step': 2, 'loss': 0.5, 'logps/chosen': -4.0},
  ]
  place = places.Place('tiny', 0)
  leaves = run / 'params'
  results.keep_stage(Job('tiny/0/x', [], leaves, place=place))
  stages = json.loads(results.path_of(place, 'stages').read_text())
  assert stages['x']['held_out'] == found[-1]
  assert stages['x']['cpu_seconds'] == 0


@pytest.mark.parametrize('size', places.SCALES)
@pytest.mark.parametrize('stage', pages.STAGES)
def test_pages_are_pages(size, stage):
  page = pages.get_config(f'{size}/7/{stage}').to_dict()
  assert page['seed'] == places.Place(size, 7).seed
  if 'num_completions' in page:
    registry.bind(pairs.check, page, 'the config')()
  elif 'rollouts' in page:
    online_settings.of(page)
  else:
    settings.of(page)
