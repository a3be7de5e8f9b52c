"""What is wrong is found before long work: sampling, the cache, directories."""

import os
import pathlib
from unittest import mock

import pytest

from dpo_jax import (
  assets,
  build,
  evaluate,
  export,
  pairs,
  rewards,
  tokenizers,
  train,
  weights,
)
from dpo_jax.evals import samples
from dpo_jax.methods import reference
from dpo_jax.training import run_lock
from tests import tiny


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp('tiny')
  tiny.write(path)
  return path


@pytest.fixture
def refused(folder, tmp_path, monkeypatch):
  """refused(message, **changes): by `train`, before the reference is scored."""

  def scored(*args, **kwargs):
    raise AssertionError('the reference was scored')

  monkeypatch.setattr(reference, 'attach', scored)

  def check(message, **changes):
    with pytest.raises(ValueError, match=message):
      train.train(tmp_path / 'run', tiny.page(folder) | changes)
    assert not (tmp_path / 'run' / 'metrics.jsonl').exists()

  return check


def _samples(**options):
  small = dict(num_prompts=2, num_samples=1, max_new_tokens=4)
  return small | options


def test_samples_that_do_not_fit(folder, refused):
  """The model has 64 positions; each prompt can grow up to the last one."""
  config = weights.read_config(str(folder / 'model'))
  tokenizer = tokenizers.load(str(folder / 'model'))
  page = tiny.page(folder)
  held_out = build.load_section('eval_data', page['eval_data'], tokenizer)
  prompts, _ = samples.choose_prompts(held_out, num_prompts=2, num_samples=1)
  room = 64 - max(map(len, prompts))
  fits = samples.build(**_samples(max_new_tokens=room))
  fits.check(held_out, config, tokenizer)
  many = _samples(max_new_tokens=room + 1, every=12)
  refused(
    f'^samples .*max_new_tokens {room + 1} .* 65 long, .* 64 positions',
    samples=many,
  )


def test_samples_without_options(refused):
  refused('samples needs .*every', samples={})


def test_counts_are_integers(refused):
  refused(r'steps is 20\.0; expected an integer', steps=20.0)
  refused("log_every is '10'; expected an integer", log_every='10')


def test_a_reward_that_is_not_ready(refused):
  def absent(prompts, completions):
    assert not prompts and not completions
    raise ValueError('no such label')

  with mock.patch.dict(rewards.REWARDS, absent=lambda: absent):
    refused('no such label', samples=_samples(every=12, reward='absent'))


# The cache.


def _no_folder(monkeypatch, tmp_path):
  monkeypatch.setenv('DPO_JAX_CACHE', '/proc/self/none')


def _no_home(monkeypatch, tmp_path):
  monkeypatch.delenv('DPO_JAX_CACHE', raising=False)
  monkeypatch.setenv('HOME', '/proc/x')


def _unknown_home(monkeypatch, tmp_path):
  monkeypatch.delenv('DPO_JAX_CACHE', raising=False)
  monkeypatch.setattr(os.path, 'expanduser', lambda path: path)


def _not_writable(monkeypatch, tmp_path):
  """Folders are there, and even root makes no file in them."""
  (tmp_path / 'cache').mkdir()
  (tmp_path / 'cache' / 'tokens').symlink_to('/proc')
  monkeypatch.setenv('DPO_JAX_CACHE', str(tmp_path / 'cache'))


@pytest.mark.skipif(not os.path.isdir('/proc/self'), reason='needs /proc')
@pytest.mark.parametrize(
  'break_cache', [_no_folder, _no_home, _unknown_home, _not_writable]
)
def test_a_cache_that_is_not_writable(
  break_cache, refused, tmp_path, monkeypatch
):
  break_cache(monkeypatch, tmp_path)
  refused('^The cache .* cannot be written .*set DPO_JAX_CACHE')
  assert not (tmp_path / 'run').exists()


def test_a_full_cache_may_be_read_only(tmp_path, monkeypatch):
  """What is there already is read without a check that it can be written."""
  monkeypatch.setenv('DPO_JAX_CACHE', str(tmp_path))
  (tmp_path / 'pypi').symlink_to('/proc')
  assert assets.cache_dir('pypi') == tmp_path / 'pypi'


# Directories.


@pytest.mark.skipif(not os.path.isdir('/proc/self'), reason='needs /proc')
@pytest.mark.parametrize('place', ['/proc/x/run', '/proc/version/run'])
def test_a_directory_that_cannot_be_written(place):
  held = run_lock.claim(pathlib.Path(place), {'seed': 1})
  with pytest.raises(ValueError, match=f"^--workdir '{place}'"), held:
    raise AssertionError


REMOTE = ['gs://bucket/run', 's3://bucket/run', pathlib.Path('gs://bucket/run')]


@pytest.mark.parametrize('place', REMOTE)
@pytest.mark.parametrize(
  ('call', 'what'),
  [
    (lambda place: train.train(place, {}), '--workdir'),
    (lambda place: pairs.make(place, {}), '--workdir'),
    (lambda place: export.export(None, place), '--out'),
    (
      lambda place: evaluate.choose(
        run=str(place),
        config=None,
        model=None,
        reference=None,
        checkpoint=None,
      ),
      "The run's directory",
    ),
  ],
)
def test_remote_places_are_refused(call, what, place, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ValueError, match=f'^{what} is .*expected a local path'):
    call(place)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('place', ['a:b/run', './gs:/run', '/gs:/run', 'runs'])
def test_local_places_are_taken(place):
  assert assets.local_path(place, '--workdir') == pathlib.Path(place)


def test_the_home_is_expanded(monkeypatch):
  monkeypatch.setenv('HOME', '/home/me')
  found = assets.local_path('~/runs', '--workdir')
  assert found == pathlib.Path('/home/me/runs')
