"""A policy that is its own reference: equal to the last bit when evaluated."""

import dataclasses
import itertools
from unittest import mock

import jax
import numpy as np
import pytest

from dpo_jax import methods, models, train, types
from dpo_jax.data import batches, mismatch, store
from dpo_jax.methods import reference
from dpo_jax.training import curves, metrics, sharding
from dpo_jax.training import step as steps_lib
from tests import forests, tiny

PAIRS = dict(name='dpo', beta=1.0)
SECTIONS = {
  'cached': PAIRS,
  'in_step': PAIRS | dict(reference='in_step'),
  'drifting': PAIRS | dict(reference='drifting'),
  'wpo': PAIRS | dict(reference='in_step', weighting='wpo'),
  'mean': PAIRS | dict(length='mean'),
  'kto': dict(name='kto', beta=1.0),
  'bco': dict(name='kto', loss='bco', beta=1.0),
  'ranking': dict(name='ranking', num_answers=3, beta=1.0),
}
# What is 0 of each method; KTO has no margins.
ZEROS = ('rewards/accuracies', 'rewards/margins', 'rewards/chosen')
LAYOUTS = {
  'rows': dict(rows=2, batch_size=4),
  'one row': dict(rows=1, batch_size=7),
  'split groups': dict(rows=2, batch_size=6, max_tree_tokens=32),
  'unshared': dict(rows=1, batch_size=5, share_prompt=False),
  'shapes': dict(rows=1, batch_size=3, max_shapes=3),
}


def _records(name: str) -> store.TokenRecords:
  arity = {'kto': 1, 'bco': 1, 'ranking': 3}.get(name, 2)
  found = forests.random_records(4, num=11, arity=arity, min_prompt=1)
  if arity > 1:
    return found
  labels = np.arange(found.completion_counts.sum(), dtype=np.float32) % 2
  found = dataclasses.replace(found, labels=labels)
  if name == 'bco':
    return found
  return mismatch.attach(found, seed=0, max_length=64)


class Evaluation:
  """Held-out batches as a run makes them, and the metrics of parameters."""

  def __init__(self, name, layout, dtype='float32', devices=1):
    self.mesh = sharding.make_mesh(devices=devices)
    compute = models.Compute(dtype=dtype)
    policy = models.policy(forests.CONFIG, compute, self.mesh)
    self.method = methods.build(SECTIONS[name])(policy)
    self.score = steps_lib.make_score(self.method)
    options = dict(LAYOUTS[layout])
    rows = options.pop('rows') * devices
    options['batch_size'] *= devices
    (packed,) = batches.eval_batches(_records(name), rows, **options)
    self.packed = packed
    self.key = sharding.replicate(self.mesh, jax.random.key(0))

  def logps(self, params):
    """The reference's function of a batch."""
    return lambda batch: self.score(params, types.Frozen(), batch, self.key)[
      'logps'
    ]

  def attached(self, params):
    """The batches with what these parameters give."""
    if self.method.reference != 'cached':
      return self.packed
    return reference.score_batches(self.packed, self.logps(params), self.mesh)

  def sums(self, packed, params, start) -> dict[str, float]:
    """Of the metrics over all batches, of each example's absolute value."""
    evaluate = steps_lib.make_eval_step(self.method, self.score)
    frozen, aux = self.method.freeze(start), self.method.init_aux(start)
    total = dict.fromkeys(ZEROS, 0.0)
    for batch in batches.iterate(packed, self.mesh):
      out, _ = evaluate(params, frozen, aux, batch, self.key)
      # Sums of squares, where there are any: nothing cancels in them.
      total = {k: x + float(out[k][-1]) for k, x in total.items() if k in out}
    return total

  def params(self):
    return sharding.replicate(self.mesh, forests.params(7))


def _nudged(params):
  """The parameters with one weight, of the last leaf, one bit larger."""
  leaves, tree = jax.tree.flatten(params)
  last = leaves[-1]
  place = (0,) * last.ndim
  value = np.nextafter(np.asarray(last[place]), np.inf, dtype=np.float32)
  return jax.tree.unflatten(tree, [*leaves[:-1], last.at[place].set(value)])


CASES = [
  *((name, 'rows', 'float32', 1) for name in SECTIONS),
  *(('cached', layout, 'float32', 1) for layout in LAYOUTS if layout != 'rows'),
  *itertools.product(
    ['cached', 'in_step'], ['split groups'], ['bfloat16'], [1]
  ),
  ('cached', 'split groups', 'float32', 2),
]


@pytest.mark.parametrize(('name', 'layout', 'dtype', 'devices'), CASES)
def test_nothing_differs_at_the_start(name, layout, dtype, devices):
  """Though policy and reference are arrays of their own."""
  run = Evaluation(name, layout, dtype, devices)
  start = run.params()
  packed = run.attached(start)
  del start
  found = run.sums(packed, run.params(), run.params())
  assert 'rewards/accuracies' in found and found == dict.fromkeys(found, 0.0)


@pytest.mark.parametrize('name', SECTIONS)
def test_one_bit_of_one_weight_is_seen(name):
  run = Evaluation(name, 'split groups')
  start = _nudged(run.params())
  found = run.sums(run.attached(start), run.params(), start)
  assert found['rewards/chosen'] > 0


@pytest.mark.parametrize(
  'where',
  [
    'cached',
    pytest.param('in_step', marks=pytest.mark.long),
    pytest.param('drifting', marks=pytest.mark.long),
  ],
)
def test_a_run_scores_policy_and_reference_by_one_program(
  where, tmp_path, monkeypatch
):
  """Arrays that lie elsewhere, be it only the key, would make another."""
  traces, make = [], steps_lib.make_score

  def watched(method):
    def score(*args):
      traces.append(args)
      return method.score(*args)

    return make(method._replace(score=score))

  monkeypatch.setattr(steps_lib, 'make_score', watched)
  monkeypatch.setenv('DPO_JAX_CACHE', str(tmp_path / 'cache'))
  tiny.write(tmp_path, num_train=24)
  config = tiny.page(tmp_path) | dict(steps=2, log_every=2, eval_every=2)
  config['method'] = dict(name='dpo', beta=1.0, reference=where)
  config['eval_batches']['max_shapes'] = 1
  with mock.patch.object(curves, 'draw'):
    train.train(tmp_path / 'run', config)
  first = metrics.read_jsonl(tmp_path / 'run' / 'metrics.jsonl')[0]
  assert first['step'] == first['eval/rewards/accuracies'] == 0
  assert first['eval/rewards/margins_high'] == 0
  assert len(traces) == 1


def test_split_groups_are_split():
  """Completions of these batches are scored in more than one of them."""
  run = Evaluation('cached', 'split groups')
  groups = [
    [(g.record, c) for row in run.packed.placement.rows_of(i) for g in row
     for c in g.completions]
    for i in range(len(run.packed))
  ]  # fmt: skip
  seen = list(itertools.chain(*groups))
  assert len(set(seen)) < len(seen)
