"""The judge's command: sides that are models, files and the data's answers."""

import json
import pathlib
import shutil
import subprocess
import sys

import jax
import pytest

from dpo_jax import judge as judge_lib
from dpo_jax import judges, weights
from tests import tiny

ROOT = pathlib.Path(__file__).parents[1]
REWARD = dict(name='function', path='tests.tiny_rewards:characters')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A model and twelve pairs of different prompts."""
  path = tmp_path_factory.mktemp('judge')
  tiny.write(path, num_train=12)
  tiny.write_numbered(path / 'pairs.jsonl', 12)
  return path


def _page(folder, **changes):
  page = dict(
    a=str(folder / 'model'),
    b='data',
    data=dict(
      source='jsonl',
      path=str(folder / 'pairs.jsonl'),
      max_length=48,
      max_prompt_length=24,
    ),
    num_prompts=9,
    temperatures=(0.0, 1.0),
    max_new_tokens=6,
    batch_size=4,
    judge=dict(name='reward', reward=REWARD),
  )
  return page | changes


def test_a_model_against_the_datas_answers(folder, tmp_path):
  found = judge_lib.judge(tmp_path / 'run', _page(folder))
  assert list(found) == ['T=0', 'T=1']
  votes = judges.read(tmp_path / 'run' / 'votes.jsonl')
  assert len(votes) == 18
  rows = tiny.rows(1, 9)
  for i, vote in enumerate(votes):
    row = rows[i % 9]
    assert vote['prompt'] == f'{i % 9} {row["prompt"]}'
    assert vote['b'] == row['chosen']
    a, b = (sum(map(ord, vote[side])) % 97 for side in 'ab')
    assert vote['scores'] == [a, b]
    assert vote['verdict'] == ('tie' if a == b else 'a' if a > b else 'b')
  for group, part in (('T=0', votes[:9]), ('T=1', votes[9:])):
    wins = [judges.outcome(vote) for vote in part]
    assert found[group]['win_rate'] == sum(wins) / 9
  assert (tmp_path / 'run' / 'verdict.png').stat().st_size > 5000
  # Nothing is sampled or judged again.
  before = (tmp_path / 'run' / 'votes.jsonl').read_bytes()
  assert judge_lib.judge(tmp_path / 'run', _page(folder)) == found
  assert (tmp_path / 'run' / 'votes.jsonl').read_bytes() == before


def test_answers_of_a_side_are_a_file_for_another_judgement(folder, tmp_path):
  found = judge_lib.judge(tmp_path / 'one', _page(folder))
  file = str(tmp_path / 'one' / 'answers_a_T1.jsonl')
  page = _page(folder, a=file, b=file, temperatures=(0.0,))
  same = judge_lib.judge(tmp_path / 'two', page)['all']
  assert same['win_rate'] == 0.5 and same['identical'] == same['ties'] == 9
  # The other way round, each outcome is the other.
  page = _page(folder, a='data', b=str(folder / 'model'))
  swapped = judge_lib.judge(tmp_path / 'three', page)
  assert swapped['T=0']['win_rate'] == 1 - found['T=0']['win_rate']
  # Each side has its own keys.
  name = 'answers_b_T1.jsonl'
  assert (tmp_path / 'three' / name).read_bytes() != pathlib.Path(
    file
  ).read_bytes()


def test_a_runs_directory_is_its_params(folder, tmp_path):
  run = tmp_path / 'run'
  run.mkdir()
  (run / 'params').symlink_to(folder / 'model')
  page = _page(folder, a=str(run), b=str(folder / 'model'), temperatures=(0.0,))
  found = judge_lib.judge(tmp_path / 'judged', page)['T=0']
  assert found['identical'] == 9


def test_the_statistics_of_a_file_of_votes(folder, tmp_path):
  judge_lib.judge(tmp_path / 'run', _page(folder))
  done = subprocess.run(
    [
      sys.executable,
      '-m',
      'dpo_jax.judge',
      f'--votes={tmp_path / "run" / "votes.jsonl"}',
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert not done.returncode, done.stderr
  assert 'T=0 ' in done.stdout and '9 votes on 9 prompts' in done.stdout


def test_equal_answers_at_two_temperatures_are_votes_in_both(folder, tmp_path):
  page = _page(folder, temperatures=(0.0, 1e-6))
  found = judge_lib.judge(tmp_path / 'run', page)
  votes = judges.read(tmp_path / 'run' / 'votes.jsonl')
  ids = [vote['id'] for vote in votes]
  assert len(ids) == 18 and len(set(ids)) < 18
  assert judge_lib.summary(votes) == found


def test_changed_weights_do_not_go_on(folder, tmp_path):
  model = tmp_path / 'model'
  shutil.copytree(folder / 'model', model)
  page = _page(folder, a=str(model), temperatures=(0.0,))
  judge_lib.judge(tmp_path / 'run', page)
  config, params = weights.load(str(model))
  weights.save(
    tmp_path / 'other', config, jax.tree.map(lambda x: 2 * x, params)
  )
  shutil.copy(tmp_path / 'other' / 'model.safetensors', model)
  with pytest.raises(ValueError, match=r'a \(.*model\): SHA-256'):
    judge_lib.judge(tmp_path / 'run', page)


def _answers(path, *prompts):
  rows = [json.dumps({'prompt': p, 'text': 'x'}) + '\n' for p in prompts]
  path.write_text(''.join(rows))
  return str(path)


def test_files_that_do_not_match(folder, tmp_path):
  first = _answers(tmp_path / 'first.jsonl', 'p', 'q')
  other = _answers(tmp_path / 'other.jsonl', 'p', 'r')
  twice = _answers(tmp_path / 'twice.jsonl', 'p', 'p')
  for a, b, message in (
    (first, other, "other.jsonl has no answer to 1 of .* such as 'q'"),
    (first, twice, "twice.jsonl:2: the prompt 'p' comes twice"),
    (str(folder / 'model'), first, 'first.jsonl has no answer to 9'),
  ):
    page = _page(folder, a=a, b=b, temperatures=(0.0,))
    with pytest.raises(ValueError, match=message):
      judge_lib.judge(tmp_path / 'run', page)
  assert not list((tmp_path / 'run').glob('answers*'))


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (dict(a=''), 'Side a is empty'),
    (dict(a='data'), 'no side is a model'),
    (
      dict(data=dict(source='jsonl', path='x', kind='unpaired')),
      "data.kind='unpaired' does not say which",
    ),
    (dict(data=None), 'needs prompts: the section `data`'),
    (dict(num_prompts=13), 'num_prompts is 13 .* 12 distinct prompts'),
    (dict(temperatures=()), 'temperatures is .*at least one'),
    (dict(temperatures=(1.0, 1.0)), 'expected different numbers'),
    (dict(temperatures=(-1.0,)), 'temperature is -1'),
    (dict(order='ab'), "Unknown order 'ab'"),
    (dict(max_new_tokens=60), 'the model has 64 positions'),
    (dict(judge=dict(name='reward', reward='vadr')), "Did you mean 'vader'"),
    (dict(judge=dict(name='rewards')), "Did you mean 'reward'"),
    (dict(num_promts=2), "Did you mean 'num_prompts'"),
    (dict(a='a.jsonl', b='b.jsonl'), 'no side is a model to sample'),
  ],
)
def test_what_cannot_be(folder, tmp_path, changes, message):
  with pytest.raises(ValueError, match=message):
    judge_lib.judge(tmp_path / 'run', _page(folder, **changes))
  assert not (tmp_path / 'run' / 'votes.jsonl').exists()
