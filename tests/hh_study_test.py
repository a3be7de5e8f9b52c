"""experiments/hh: parts of the dialogues, commands, best-of-N and tables."""

import gzip
import itertools
import json
import pathlib

import numpy as np
import pytest

from dpo_jax import data, tokenizers
from dpo_jax.data.sources import dialogues
from experiments import scheduler, win_rate_tables
from experiments.hh import pages, report, run, splits
from tests import study_commands, tiny

HELPFUL, HARMLESS = splits.SUBSETS


def _dialogue(
  first: str, turns: int, subset=HELPFUL, chosen='good', rejected='bad answer'
):
  before = first
  for turn in range(turns - 1):
    before += f'{dialogues.ASSISTANT} yes{dialogues.HUMAN} and {turn}?'
  before = f'{dialogues.HUMAN} {before}{dialogues.ASSISTANT} '
  return splits.Dialogue(before + chosen, before + rejected, subset)


def _dialogues(count: int, offset: int = 0):
  """Of both subsets; each first turn begins several."""
  rng = np.random.default_rng(offset)
  return [
    _dialogue(
      f'question {offset + rng.integers(count)}?', rng.integers(1, 4), subset
    )
    for subset in (HELPFUL, HELPFUL, HELPFUL, HARMLESS, HARMLESS)
    for _ in range(count)
  ]


def _write(folder: pathlib.Path, split: str, found):
  for subset in splits.SUBSETS:
    path = folder / subset / f'{split}.jsonl.gz'
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, 'wt') as out:
      for d in found:
        if d.subset == subset:
          row = {'chosen': d.chosen, 'rejected': d.rejected}
          out.write(json.dumps(row) + '\n')


def _turns(found) -> set[str]:
  return {d.first_turn for d in found}


def test_parts_share_no_first_turn(tmp_path):
  found = _dialogues(300)
  _write(tmp_path, 'test', found)
  assert splits.read(tmp_path, 'test') == found
  assert splits.read(tmp_path, 'train') == []
  parts = splits.parts(found, [])
  three = [parts[name] for name in ('a', 'b', 'held_out')]
  assert sorted(d for part in three for d in part) == sorted(found)
  turns = [_turns(part) for part in three]
  total = sum(map(len, turns))
  assert total == len(set().union(*turns)) > 100
  for part, share in zip(turns, (0.4, 0.4, 0.2)):
    assert len(part) / total == pytest.approx(share, abs=0.08)


def test_with_train_files_the_test_files_are_held_out():
  test, train = _dialogues(40), _dialogues(200, offset=20)
  assert _turns(test) & _turns(train)
  parts = splits.parts(test, train)
  assert parts['held_out'] == test
  assert not _turns(parts['a']) & _turns(parts['b'])
  learned = _turns(parts['a']) | _turns(parts['b'])
  assert learned == _turns(train) - _turns(test)


def test_parts_have_the_dialogues_that_they_say():
  parts = splits.parts(_dialogues(300), [])
  held = [parts[f'held_{x}'] for x in ('helpful', 'harmless', 'multi')]
  assert sorted(itertools.chain(*held)) == sorted(parts['held_out'])
  for found, subset in zip(held, splits.SUBSETS):
    marks = {(d.chosen.count(dialogues.HUMAN), d.subset) for d in found}
    assert marks == {(1, subset)}
  several = {d.chosen.count(dialogues.HUMAN) for d in held[2]}
  assert several == {2, 3}
  assert {d.chosen.count(dialogues.HUMAN) for d in parts['a_multi']} == several
  sizes = {
    name: [sum(d.subset == s for d in parts[name]) for s in splits.SUBSETS]
    for name in ('a', 'a_0', 'a_50', 'a_100')
  }
  least = min(sizes['a'])
  assert sizes['a_0'] == [least, 0] and sizes['a_100'] == [0, least]
  assert sum(sizes['a_50']) == least
  assert abs(sizes['a_50'][0] - sizes['a_50'][1]) <= 1


def test_a_folder_without_dialogues_is_refused(tmp_path):
  _write(tmp_path, 'train', _dialogues(5))
  with pytest.raises(ValueError, match=r'no helpful-base/test\.jsonl\.gz'):
    splits.read(tmp_path, 'test')


@pytest.fixture
def made(tmp_path, monkeypatch):
  """A folder of runs with data, and one of results."""
  monkeypatch.setattr(pages, 'RUNS', str(tmp_path / 'runs'))
  monkeypatch.setattr(run, 'RESULTS', tmp_path / 'results')
  monkeypatch.setattr(run, 'USAGE', scheduler.Usage(tmp_path / 'usage'))
  _write(tmp_path / 'from', 'test', _dialogues(60))
  flags = ['splits', f'--dialogues={tmp_path}/from', f'--out={pages.part("")}']
  monkeypatch.setattr('sys.argv', flags)
  splits.main()
  return tmp_path


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
  folder = tmp_path_factory.mktemp('hh')
  tiny.write(folder)
  return tokenizers.load(str(folder / 'model'))


@pytest.mark.parametrize('scale', pages.SCALES)
def test_the_commands_are_of_pages_that_are_checked(made, scale, tokenizer):
  jobs = run.jobs(scale, judge='a-model')
  assert all(name in jobs for job in jobs.values() for name in job.needs)
  for job in jobs.values():
    module = job.command[1]
    if module.startswith('dpo_jax.'):
      page = study_commands.page_of(job.command, pages.get_config)
      study_commands.check(module, page)
      for section in study_commands.data_sections(page):
        assert len(data.load(section, tokenizer=tokenizer)), (job.name, section)


def test_what_a_judgement_needs_comes_first(made):
  jobs = run.jobs('small')
  left = scheduler.to_run(jobs, ['small/judged/best_of/16'])
  assert {'small/reward_model', 'small/judge_model', 'small/best_of'} <= {*left}
  # The judge is of the other part.
  judged = pages.get_config('small/judged')
  assert judged.judge.reward.model == pages.folder(
    'small', 'judge_model/params'
  )
  learns = pages.get_config('small/judge_model').train_data.path
  assert learns == pages.part('b')
  assert pages.get_config('small/dpo').train_data.path == pages.part('a')
  assert pages.get_config('small/reward_model').train_data.path == pages.part(
    'a'
  )


def _group(rate: float) -> dict:
  return dict(
    win_rate=rate,
    low=rate - 0.1,
    high=rate + 0.1,
    prompts=9,
    words_a=5,
    words_b=6,
  )


def test_results_and_tables(made):
  job = run.jobs('small')['small/dpo_0.1']
  job.leaves.parent.mkdir(parents=True)
  rows = [
    {'step': 0, 'eval/loss': 0.7, 'eval/rewards/accuracies': 0.0},
    {
      'step': 5,
      'eval/loss': 0.6,
      'eval/rewards/accuracies': 0.61,
      'eval/rewards/accuracies_low': 0.5,
      'eval/rewards/accuracies_high': 0.7,
    },
  ]
  (job.leaves.parent / 'metrics.jsonl').write_text(
    ''.join(json.dumps(row) + '\n' for row in rows)
  )
  run.keep(job)
  found = json.loads(job.result.read_text())
  assert report.accuracies({'dpo_0.1': found})[2] == (
    '| dpo_0.1 | 0.610 [0.500, 0.700] | 0 | 0.0 |'
  )
  groups = {f'T={t:g}': _group(0.4 + t / 10) for t in pages.TEMPERATURES}
  for name, verdict in (
    ('dpo_0.1/held_multi', groups),
    ('best_of/4', {'all': _group(0.3)}),
    ('best_of/16', {'all': _group(0.35)}),
  ):
    job = run.jobs('small')[f'small/judged/{name}']
    job.leaves.parent.mkdir(parents=True)
    job.leaves.write_text(json.dumps({'groups': verdict}))
    run.keep(job)
  judged = win_rate_tables.read(run.RESULTS / 'small')
  shown = judged, report.PARTS, pages.TEMPERATURES
  assert win_rate_tables.by_temperature(*shown)[2:] == [
    '| dpo_0.1 | several turns | 9 | 0.425 [0.325, 0.525] | '
    '0.470 [0.370, 0.570] | 0.500 [0.400, 0.600] | 5, 6 |'
  ]
  lines = win_rate_tables.best_of(judged)[2:]
  assert [line.split(' | ')[:3] for line in lines] == [
    ['| 4', '9', '0.300 [0.200, 0.400]'],
    ['| 16', '9', '0.350 [0.250, 0.450]'],
  ]
  panels = win_rate_tables.draw(*shown).axes
  assert [len(axes.containers) for axes in panels] == [0, 0, 1]


def test_the_longer_answer(made):
  lines = report.longer(pathlib.Path(pages.part('')))
  assert len(lines) == 2 + 4
  # 'good' is shorter than 'bad answer'.
  assert all(' | 0.000 [' in line for line in lines[2:])
  assert (
    report.longer_wins(_dialogue('?', 2, HELPFUL, 'longer', 'short')) is True
  )
  assert report.longer_wins(_dialogue('?', 1, HELPFUL, 'same', 'same')) is None
