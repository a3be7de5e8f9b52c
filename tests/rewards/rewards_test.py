"""Rewards: what a call checks, and users' functions by module path."""

import importlib
import json

import numpy as np
import pytest

from dpo_jax import rewards
from dpo_jax.rewards import user_function

PROMPTS, TEXTS = ['p', 'q'], ['good', 'bad']


def _returns(scores):
  return rewards.Reward('mine', lambda prompts, completions: scores)


@pytest.mark.parametrize('scores', [[1, 2], (1.0, 2.0), np.array([1, 2])])
def test_scores_are_float32(scores):
  found = _returns(scores)(PROMPTS, TEXTS)
  assert found.dtype == np.float32 and found.tolist() == [1, 2]


@pytest.mark.parametrize(
  ('scores', 'shape'),
  [([1], r'\(1,\)'), ([[1], [2]], r'\(2, 1\)'), (3.0, r'\(\)')],
)
def test_the_wrong_number_of_scores(scores, shape):
  with pytest.raises(
    ValueError, match=f"reward 'mine' .* shape {shape} for 2 .* \\(2,\\)"
  ):
    _returns(scores)(PROMPTS, TEXTS)


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_names_its_text(bad):
  prompts, texts = ['p', 'q' * 99, 'r'], ['a', 'b\n' * 99, 'c']
  with pytest.raises(ValueError, match="reward 'mine'") as error:
    _returns([0, bad, bad])(prompts, texts)
  said = str(error.value)
  assert f'returned {bad} for' in said and 'number 2 of 3' in said
  assert repr('q' * 57 + '...') in said and 'b\\n' * 28 in said
  assert len(said) < 300 and '\n' not in said


@pytest.mark.parametrize('scores', [['a', 'b'], [[1], [2, 3]], [{}, {}]])
def test_what_is_no_number(scores):
  with pytest.raises(RuntimeError, match="reward 'mine' failed on 2"):
    _returns(scores)(PROMPTS, TEXTS)


def test_a_reward_that_raises_is_named_and_its_error_chained():
  def fail(prompts, completions):
    raise KeyError('weights')

  with pytest.raises(RuntimeError, match=r"'mine' .*KeyError: 'wei") as error:
    rewards.Reward('mine', fail)(PROMPTS, TEXTS)
  assert isinstance(error.value.__cause__, KeyError)


def test_json_has_the_shortest_decimals():
  x = np.random.default_rng(0).normal(size=99).astype(np.float32)
  found = rewards.as_json(np.append(x, np.float32(0.4404)))
  assert found[-1] == 0.4404
  assert np.float32(json.loads(json.dumps(found)))[:-1].tolist() == x.tolist()


# Users' functions.

MODULE = """
CALLS = []

def length(prompts, completions, *, weight=1.0):
  CALLS.append((prompts, completions))
  return [weight * len(text) for text in completions]

def needs(prompts, completions, *, weight):
  return 3

def one(texts):
  return 3

number = 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
  """The name of a module in a package of the working directory."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr('sys.path', ['/nowhere'])
  folder = tmp_path / f'package_{tmp_path.name}'
  folder.mkdir()
  (folder / 'module.py').write_text(MODULE)
  (folder / 'broken.py').write_text('import nothing_like_it\n')
  return f'{folder.name}.module'


def _function(path, **options):
  return rewards.build(dict(name='function', path=path, **options))


def test_a_function_of_a_module_is_called_with_lists(module):
  reward = _function(f'{module}:length', options=dict(weight=2))
  assert reward.name == 'function' and reward.positive is None
  loaded = reward([], [])
  assert loaded.shape == (0,) and loaded.dtype == np.float32
  assert reward(tuple(PROMPTS), tuple(TEXTS)).tolist() == [8, 6]
  assert importlib.import_module(module).CALLS == [(PROMPTS, TEXTS)]


@pytest.mark.parametrize(
  ('path', 'options', 'message'),
  [
    ('length', {}, "'length'; expected 'package.module:name'"),
    ('MODULE:', {}, "expected 'package.module:name'"),
    ('MODULEs:length', {}, "cannot be imported .*No module named 'package_"),
    ('PACKAGE.broken:x', {}, "broken' cannot .*No module named 'nothing_like"),
    ('MODULE:lenght', {}, "has no 'lenght'. Did you mean 'length'"),
    ('MODULE:number', {}, 'is 3; expected a function'),
    ('MODULE:one', {}, 'cannot be called with a list of prompts'),
    ('MODULE:needs', {}, "module:needs' needs weight"),
    ('MODULE:length', dict(wieght=1), "Did you mean 'weight'"),
  ],
)
def test_a_function_that_is_not_there(path, options, message, module):
  path = path.replace('MODULE', module)
  path = path.replace('PACKAGE', module.partition('.')[0])
  with pytest.raises(ValueError, match=message):
    _function(path, options=options)


def test_the_file_of_a_function_is_known(module, tmp_path):
  reward = _function(f'{module}:length')
  assert reward.source == f'{module}:length'
  (file,) = reward.files()
  folder = tmp_path / module.partition('.')[0]
  assert file.samefile(folder / 'module.py')
  (folder / 'other.py').write_text(f'from {module} import length\n')
  (again,) = _function(f'{folder.name}.other:length').files()
  assert again == file
  assert not _returns([]).files()
  assert user_function.source_files('builtins:print') == []


def test_a_function_needs_its_path():
  with pytest.raises(ValueError, match='needs path'):
    rewards.build('function')
