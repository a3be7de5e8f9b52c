"""Reference log-probabilities: equal to those in the step, kept with care."""

import copy
import dataclasses
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers as hf_tokenizers

from dpo_jax import assets, methods, models, registry, settings, train, types
from dpo_jax.data import batches
from dpo_jax.methods import reference
from dpo_jax.training import metrics, sharding
from dpo_jax.training import step as steps_lib
from tests import builds, forests, tiny

MESH = sharding.make_mesh(devices=1)
POLICY = models.policy(forests.CONFIG, models.Compute())


def _method(where):
  section = dict(name='dpo', beta=0.1, reference=where)
  return registry.build(methods.METHODS, section, 'method')()(POLICY)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  """The folder that reference log-probabilities are kept in."""
  monkeypatch.setenv('DPO_JAX_CACHE', str(tmp_path / 'cache'))
  return assets.cache_dir('reference')


@pytest.fixture(scope='module')
def records():
  """Some share completions, some have none, some have no prompt."""
  out = forests.random_records(5, num=9, max_prompt=3)
  assert any(not out.prompt_length(i) for i in range(len(out)))
  return out


@pytest.fixture(scope='module')
def score():
  """batch -> the log-probabilities of a random model."""
  compiled = steps_lib.make_score(_method('cached'))
  params = forests.params(3)
  key = jax.random.key(0)
  return lambda batch: compiled(params, types.Frozen(), batch, key)['logps']


class Calls:
  """A scoring function and how often it was called; the last call raises."""

  def __init__(self, score, last=math.inf):
    self.score, self.last, self.count = score, last, 0

  def __call__(self, batch):
    self.count += 1
    if self.count >= self.last:
      raise KeyboardInterrupt
    return self.score(batch)


def _minus_one(batch):
  return np.full(batch.score_weight_RxN.shape, -1, np.float32)


def _attach(records, score, **visited):
  """Records with their reference; of what a run visits, or of all."""
  singles = reference.singles(records, **visited)
  (packed,) = batches.eval_batches(singles, 1, batch_size=3)
  options = dict(weights='w', settings={'s': 1})
  return reference.attach(records, packed, score, MESH, **options)


def _logps(records):
  return records.extras['reference']


# Cached and in the step.


def test_cached_values_are_those_of_the_step(records, score):
  cached = _attach(records, score)
  packed = forests.pack(
    cached, num_batches=4, rows=1, seed=1, batch_size=5, max_shapes=1
  )
  method, key = _method('in_step'), jax.random.key(0)
  compiled = steps_lib.make_score(method)
  frozen = types.Frozen(reference=forests.params(3))
  for i in range(len(packed)):
    batch = packed[i]
    bare = batch.replace(extras_RxN={})
    in_step = steps_lib.annotated(method, compiled, frozen, None, bare, key)
    real = batch.score_weight_RxN > 0
    assert real.any()
    np.testing.assert_allclose(
      batch.extras_RxN['reference'][real],
      in_step.extras_RxN['reference'][real],
      atol=1e-4,
    )


def test_cached_values_are_those_of_a_plain_softmax(records, score):
  cached = _attach(records, score)
  plain = forests.Plain(records)
  logps = np.asarray(plain.logps(forests.params(3)))
  for i in range(len(records)):
    skip = not records.prompt_length(i)
    for c, span in enumerate(records.completion_spans(i)):
      row = plain.index[i, c]
      expected = logps[row][plain.mask[row]]
      found = _logps(cached)[span]
      if c not in records.examples(i):
        assert (found == 0).all()
        continue
      np.testing.assert_allclose(found[skip:], expected, atol=1e-4)
      assert (found[:skip] == 0).all()


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp('tiny')
  tiny.write(path)
  return path


@pytest.mark.long
def test_both_give_the_same_training_curve(folder, tmp_path):
  curves = []
  for where in ('cached', 'in_step'):
    config = tiny.page(folder) | dict(steps=6, log_every=1, eval_every=3)
    config['method']['reference'] = where
    config['train_batches']['max_shapes'] = 1
    train.train(tmp_path / where, config)
    curves.append(metrics.read_jsonl(tmp_path / where / 'metrics.jsonl'))
  cached, in_step = curves
  assert len(cached) == len(in_step) == 9
  for a, b in zip(cached, in_step):
    assert a.keys() == b.keys() and a['step'] == b['step']
    for name in a.keys() - {'mfu', 'seconds_per_step'}:
      if not name.endswith('_per_second'):
        assert a[name] == pytest.approx(b[name], rel=1e-3, abs=1e-4), name
  assert cached[-1]['eval/loss'] < 0.6


# What is scored.


@pytest.mark.parametrize('seed', [0, 1])
@pytest.mark.parametrize('share', [1, 4, 0.5, 1.0, 2.3])
def test_what_training_visits_is_scored(share, seed, records):
  per_epoch = int(records.example_counts.sum())
  visited = share if isinstance(share, int) else math.ceil(share * per_epoch)
  size = 1 if visited == 1 else 4
  steps = -(-visited // size)
  visited = steps * size
  found = _attach(records, _minus_one, num_examples=visited, seed=seed)
  packed = batches.train_batches(found, steps, 1, seed, batch_size=size)
  seen = np.zeros(len(records.tokens), bool)
  places = dataclasses.replace(
    found, extras=found.extras | {'place': np.arange(len(seen))}
  )
  packed = packed.of(places)
  for i in range(len(packed)):
    real = packed[i].score_weight_RxN > 0
    assert (packed[i].extras_RxN['reference'][real] == -1).all()
    seen[packed[i].extras_RxN['place'][real]] = True
  # And nothing else.
  np.testing.assert_array_equal(seen, _logps(found) == -1)


def test_more_steps_score_the_rest(records):
  calls = Calls(_minus_one)
  few = _attach(records, calls, num_examples=3, seed=0)
  first = calls.count
  whole = _attach(records, calls)
  assert first < calls.count
  assert (_logps(few) == -1).sum() < (_logps(whole) == -1).sum()
  # What more steps have scored serves fewer.
  count = calls.count
  again = _attach(records, calls, num_examples=3, seed=0)
  assert calls.count == count
  np.testing.assert_array_equal(_logps(again), _logps(whole))


# Hits and misses.


def _prepare(config, change=lambda built: built):
  """Batches of the training records that preparing a run scores."""
  run = settings.of(config)
  calls = Calls(_minus_one)
  built = change(builds.load(run))
  packed = builds.prepare(
    run,
    built,
    lambda params, frozen, batch, key: {'logps': calls(batch)},
  )
  # Those are never taken from the cache.
  return calls.count - len(packed.held_out)


def _row(config):
  path = pathlib.Path(config['train_data']['path'])
  lines = path.read_text().splitlines()
  row = json.loads(lines[3])
  row['chosen'], row['rejected'] = row['rejected'], row['chosen'] + ' not'
  lines[3] = json.dumps(row)
  changed = path.with_name('changed.jsonl')
  changed.write_text('\n'.join(lines))
  config['train_data']['path'] = str(changed)


def _tokenizer(config):
  path = pathlib.Path(config['model']['uri'] + '-tokenizer')
  path.mkdir(exist_ok=True)
  tokenizer = hf_tokenizers.ByteLevelBPETokenizer()
  tokenizer.train_from_iterator(['a plain text'], 270, special_tokens=['<eos>'])
  tokenizer.save(str(path / 'tokenizer.json'))
  (path / 'tokenizer_config.json').write_text('{"eos_token": "<eos>"}')
  config['model']['tokenizer'] = str(path)


def _set(section, **values):
  return lambda config: config[section].update(values)


def _weight(built):
  def change(path, x):
    last = jax.tree_util.keystr(path) == paths[-1]
    return x.at[(0,) * x.ndim].multiply(1 + 1e-6) if last else x

  leaves = jax.tree_util.tree_leaves_with_path(built.params)
  paths = [jax.tree_util.keystr(path) for path, _ in leaves]
  params = jax.tree.map(jnp.asarray, built.params)
  params = jax.tree_util.tree_map_with_path(change, params)
  return built._replace(params=params)


def _model_config(built):
  config = dataclasses.replace(built.config, rope_theta=5e5)
  return built._replace(config=config)


MISSES = {
  'row': _row,
  'tokenizer': _tokenizer,
  'truncation': _set('train_data', max_length=9, max_prompt_length=4),
  'attention': _set('model', attention='dense'),
  'remat': _set('model', remat='full'),
  'dtype': _set('model', dtype='bfloat16'),
}
HITS = {
  'nothing': lambda config: None,
  'loss': _set('method', beta=0.5, label_smoothing=0.1),
  'schedule': _set('schedule', peak=1.0),
  'fewer steps': lambda config: config.update(steps=3),
  'training batches': _set('train_batches', share_prompt=False),
}


@pytest.mark.parametrize('name', [*MISSES, *HITS])
def test_only_what_matters_misses_the_cache(name, folder):
  config = tiny.page(folder)
  assert _prepare(config) > 0
  changed = copy.deepcopy(config)
  {**MISSES, **HITS}[name](changed)
  assert (_prepare(changed) > 0) == (name in MISSES)
  assert _prepare(config) == 0


@pytest.mark.parametrize('change', [_weight, _model_config])
def test_another_model_misses_the_cache(change, folder):
  config = tiny.page(folder)
  count = _prepare(config)
  assert _prepare(config, change) == count > 0
  assert _prepare(config, change) == 0


# Damage, kills, numbers that are none.


def _flip(path):
  content = bytearray(path.read_bytes())
  content[-1] ^= 1
  path.write_bytes(content)


def _cut(path):
  path.write_bytes(path.read_bytes()[:-4])


DAMAGES = {
  'flip': _flip,
  'cut': _cut,
  'empty': lambda path: path.write_bytes(b''),
  'text': lambda path: path.write_text('not found\n' * 9),
  'other size': lambda path: reference._write(path, logps=np.zeros(3, 'f4')),
  'other name': lambda path: reference._write(path, other=np.zeros(3, 'f4')),
}


@pytest.mark.parametrize('damage', DAMAGES)
def test_a_damaged_file_is_made_again(damage, records, score, cache, caplog):
  expected = _logps(_attach(records, score))
  (path,) = cache.iterdir()
  DAMAGES[damage](path)
  calls = Calls(score)
  np.testing.assert_array_equal(_logps(_attach(records, calls)), expected)
  warnings = [r.getMessage() for r in caplog.records if r.levelno == 30]
  assert len(warnings) == 1 and calls.count
  assert f'{path} is damaged and made again' in warnings[0]
  whole = calls.count
  np.testing.assert_array_equal(_logps(_attach(records, calls)), expected)
  assert calls.count == whole


@pytest.mark.parametrize('place', [1, 2, 0.5, 1.0])
def test_a_killed_pass_goes_on(
  place, records, score, cache, monkeypatch, tmp_path
):
  calls = Calls(score)
  expected = _logps(_attach(records, calls))
  monkeypatch.setenv('DPO_JAX_CACHE', str(tmp_path / 'other'))
  monkeypatch.setattr(reference, 'SAVE_SECONDS', -1)
  last = place if isinstance(place, int) else int(place * calls.count)
  with pytest.raises(KeyboardInterrupt):
    _attach(records, Calls(score, last))
  other = assets.cache_dir('reference')
  # Of the batches before the last one, all are there.
  assert [p.suffix for p in other.iterdir()] == ['.part'] * (last > 1)
  rest = Calls(score)
  np.testing.assert_array_equal(_logps(_attach(records, rest)), expected)
  assert rest.count == calls.count - (last - 1)
  (path,) = other.iterdir()
  assert path.suffix == '.safetensors'
  assert path.read_bytes() == next(cache.iterdir()).read_bytes()


def test_a_damaged_part_begins_again(records, score, monkeypatch, cache):
  monkeypatch.setattr(reference, 'SAVE_SECONDS', -1)
  with pytest.raises(KeyboardInterrupt):
    _attach(records, Calls(score, 5))
  _flip(next(cache.iterdir()))
  calls = Calls(score)
  _attach(records, calls)
  assert calls.count > 5
  assert [p.suffix for p in cache.iterdir()] == ['.safetensors']


@pytest.mark.parametrize('value', [np.nan, -np.inf, np.inf])
def test_a_reference_that_is_not_finite_names_the_row(value, records, cache):
  record = 7
  assert len(records.examples(record))

  def bad(batch):
    slot = np.asarray(batch.slot_record_RxS)
    owner = np.take_along_axis(slot, np.asarray(batch.score_slot_RxN), 1)
    return np.where(owner == record, value, _minus_one(batch))

  with pytest.raises(ValueError, match=f'forest:{record + 1}: the reference'):
    _attach(records, bad)
  # Nothing of it is kept.
  assert (_logps(_attach(records, _minus_one)) == -1).any()
  assert [p.suffix for p in cache.iterdir()] == ['.safetensors']


def test_a_reference_that_is_not_the_start_stops_the_run(folder, tmp_path):
  config = tiny.page(folder) | dict(steps=2, log_every=1, eval_every=2)
  run = settings.of(config)
  loaded = builds.load(run)
  other = folder / 'other'
  tiny.save_model(other, loaded.config, seed=9)
  config['model']['reference'] = str(other)
  with pytest.raises(ValueError, match=r'At step 0 eval/loss is .*is 0\.69315'):
    train.train(tmp_path / 'refused', config)
  config['check_start'] = False
  last = train.train(tmp_path / 'run', config).metrics
  assert abs(last['eval/rewards/margins']) > 1e-3
