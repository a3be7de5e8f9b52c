"""KTO and BCO as methods, against float64; and rankings."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax import methods, registry, types
from dpo_jax.data import batches, mismatch, store
from dpo_jax.data import records as records_lib
from dpo_jax.training import step
from tests import bigram, forests

BETA = 0.3
POLICY, REFERENCE = bigram.params(0), bigram.params(1)


def _labelled(num=9):
  """Records of one to three labelled completions, each an example."""
  rng, builder = np.random.default_rng(5), store.Builder()
  for i in range(num):
    count = int(rng.integers(1, 4))
    labels = tuple(bool(x) for x in (np.arange(count) + i) % 3 > 0)
    record = records_lib.Record(
      prompt='',
      completions=('',) * count,
      examples=tuple((k,) for k in range(count)),
      labels=labels,
      file='forest',
      row=i + 1,
    )
    prompt, *answers = (
      rng.integers(0, bigram.VOCAB, rng.integers(1, 6)).tolist()
      for _ in range(count + 1)
    )
    builder.add(record, prompt, answers)
  return builder.finish()


def _ratio(prompt, answer):
  return bigram.logp(POLICY, prompt, answer) - bigram.logp(
    REFERENCE, prompt, answer
  )


def _examples(records):
  """(prompt, [its completions], label of the first) of every example."""
  return [
    (
      records.prompt(i),
      [records.completions(i)[c] for c in example],
      records.labels_of(i)[example[0]],
    )
    for i in range(len(records))
    for example in records.examples(i)
  ]


def _method(name='kto', **options):
  section = dict(name=name, beta=BETA, reference='in_step') | options
  return registry.build(methods.METHODS, section, 'method')()(bigram.POLICY)


def _evaluate(method, records, aux=None):
  (packed,) = batches.eval_batches(records, 3, batch_size=100)
  assert (packed[0].example_weight_RxE == 0).any()
  aux = method.init_aux(REFERENCE) if aux is None else aux
  frozen = types.Frozen(reference=REFERENCE)
  evaluate = forests.make_eval_step(method)
  return evaluate(POLICY, frozen, aux, packed[0], jax.random.key(0))


def _mean(metric):
  return float(metric[0] / metric[1])


@pytest.mark.parametrize('weights', [(1.0, 1.0), (1.5, 0.5)])
@pytest.mark.parametrize('swap', [False, True])
def test_kto(weights, swap):
  """swap: policy and reference change places, the baseline is cut at 0."""
  records = mismatch.attach(_labelled(), seed=0, max_length=64)
  good, bad = weights
  method = _method(loss='kto', desirable_weight=good, undesirable_weight=bad)
  policy, reference = (REFERENCE, POLICY) if swap else (POLICY, REFERENCE)

  def ratio(prompt, y):
    return bigram.logp(policy, prompt, y) - bigram.logp(reference, prompt, y)

  examples = _examples(records)
  baseline = np.mean([ratio(x, ys[1]) for x, ys, _ in examples])
  z0 = max(baseline, 0)
  losses = []
  for x, (own, _), label in examples:
    gain = BETA * (ratio(x, own) - z0)
    weight, sign = (good, 1) if label else (bad, -1)
    losses.append(weight * (1 - 1 / (1 + np.exp(-sign * gain))))

  (packed,) = batches.eval_batches(records, 3, batch_size=100)
  out = forests.make_eval_step(method)(
    policy,
    types.Frozen(reference=reference),
    None,
    packed[0],
    jax.random.key(0),
  )
  assert _mean(out['loss']) == pytest.approx(np.mean(losses), rel=1e-5)
  assert _mean(out['kl']) == pytest.approx(baseline, rel=1e-4)
  right = [
    (BETA * (ratio(x, own) - z0) > 0) == label
    for x, (own, _), label in examples
  ]
  assert _mean(out['rewards/accuracies']) == pytest.approx(np.mean(right))
  for name, label in (('chosen', True), ('rejected', False)):
    rewards = [BETA * ratio(x, ys[0]) for x, ys, y in examples if y == label]
    assert len(rewards) > 2
    given = _mean(out[f'rewards/{name}'])
    assert given == pytest.approx(np.mean(rewards), rel=1e-4)


def test_the_two_baselines_of_kto_are_on_both_sides_of_0():
  records = mismatch.attach(_labelled(), seed=0, max_length=64)
  baseline = np.mean([_ratio(x, ys[1]) for x, ys, _ in _examples(records)])
  assert abs(baseline) > 0.05


def test_the_baseline_of_kto_is_not_differentiated():
  """Answers of other prompts move nothing but by the number z0."""
  records = mismatch.attach(_labelled(), seed=0, max_length=64)
  (packed,) = batches.eval_batches(records, 3, batch_size=100)
  method, frozen = _method(loss='kto'), types.Frozen(reference=REFERENCE)
  # So that z0 is above 0, where it would have a gradient.
  flip = np.mean([_ratio(x, ys[1]) for x, ys, _ in _examples(records)]) < 0
  policy, reference = (REFERENCE, POLICY) if flip else (POLICY, REFERENCE)
  frozen = types.Frozen(reference=reference)
  total, (_, count, _) = step.batch_gradient(
    method, policy, frozen, None, packed[0], jax.random.key(0), 1
  )

  def loss(table, z0):
    logps = jax.nn.log_softmax(table)
    terms = []
    for x, (own, _), label in _examples(records):
      ids = np.array([*x, *own])
      before, after = ids[len(x) - 1 : -1], ids[len(x) :]
      ratio = logps[before, after].sum() - bigram.logp(reference, x, own)
      gain = BETA * (ratio - z0) * (1 if label else -1)
      terms.append(1 - jax.nn.sigmoid(gain))
    return sum(terms) / len(terms)

  z0 = abs(np.mean([_ratio(x, ys[1]) for x, ys, _ in _examples(records)]))
  expected = jax.grad(loss)(policy['table'], z0)
  np.testing.assert_allclose(total['table'] / count, expected, atol=1e-5)


def test_bco_compares_with_the_mean_of_all_rewards_so_far():
  """Of desirable and undesirable ones apart, each counting half."""
  records, method = _labelled(), _method(loss='bco')
  examples = _examples(records)
  labels = np.array([label for *_, label in examples], bool)
  rewards = np.array([BETA * _ratio(x, ys[0]) for x, ys, _ in examples])
  means = np.array([rewards[labels].mean(), rewards[~labels].mean()])
  counts = np.array([labels.sum(), (~labels).sum()])
  assert counts[0] != counts[1]

  def expected(shift):
    sign = np.where(labels, 1, -1)
    return np.logaddexp(0, -sign * (rewards - shift)).mean()

  aux = method.init_aux(REFERENCE)
  out = _evaluate(method, records, aux)
  assert _mean(out['loss']) == pytest.approx(expected(means.mean()), rel=1e-5)
  aux = method.update(aux, POLICY, out)
  np.testing.assert_allclose(aux['rewards'].mean, means, rtol=1e-4)
  np.testing.assert_array_equal(aux['rewards'].count, counts)

  # What was seen before counts by how much it was.
  before = aux['rewards']._replace(mean=jnp.array([3.0, 1.0]))
  before = before._replace(count=3.0 * before.count)
  out = _evaluate(method, records, {**aux, 'rewards': before})
  mixed = (3 * np.array([3.0, 1.0]) + means) / 4
  assert _mean(out['loss']) == pytest.approx(expected(mixed.mean()), rel=1e-5)


def test_bco_of_pairs_keeps_the_same_means():
  records = forests.random_records(2, num=9, min_prompt=1)
  method = _method('dpo', loss='bco')
  out = _evaluate(method, records)
  rewards = np.array(
    [[BETA * _ratio(x, y) for y in ys] for x, ys, _ in _examples(records)]
  )
  shift = rewards.mean()
  expected = np.logaddexp(0, shift - rewards[:, 0])
  expected += np.logaddexp(0, rewards[:, 1] - shift)
  assert _mean(out['loss']) == pytest.approx(expected.mean(), rel=1e-5)
  aux = method.update(method.init_aux(REFERENCE), POLICY, out)
  np.testing.assert_allclose(aux['rewards'].mean, rewards.mean(0), rtol=1e-4)
  np.testing.assert_array_equal(aux['rewards'].count, [len(rewards)] * 2)


@pytest.mark.parametrize('ranks', [2, 4])
def test_plackett_luce(ranks):
  """Eq. 20 as a sum over orders; with two answers it is DPO."""
  records = forests.random_records(3, num=8, arity=ranks, min_prompt=1)
  out = _evaluate(_method('ranking', num_answers=ranks), records)
  rewards = np.array(
    [[BETA * _ratio(x, y) for y in ys] for x, ys, _ in _examples(records)]
  )
  losses, top, ordered = [], [], []
  for r in rewards:
    weights = {
      order: np.prod(
        [
          np.exp(r[k]) / np.exp(r[list(order[i:])]).sum()
          for i, k in enumerate(order)
        ]
      )
      for order in itertools.permutations(range(ranks))
    }
    assert sum(weights.values()) == pytest.approx(1)
    losses.append(-np.log(weights[tuple(range(ranks))]))
    top.append(r.argmax() == 0)
    pairs = itertools.combinations(r, 2)
    ordered.append(np.mean([a > b for a, b in pairs]))
  assert _mean(out['loss']) == pytest.approx(np.mean(losses), rel=1e-4)
  assert _mean(out['rewards/top_1']) == pytest.approx(np.mean(top))
  assert _mean(out['rewards/accuracies']) == pytest.approx(np.mean(ordered))
  if ranks == 2:
    pairwise = _evaluate(_method('dpo'), records)
    assert _mean(out['loss']) == pytest.approx(_mean(pairwise['loss']))


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    (dict(loss='kot'), "Did you mean 'kto'"),
    (dict(reference='none'), 'compares with a reference'),
    (dict(label_smoothing=0.1), 'label_smoothing'),
    (dict(beta=-1.0), 'beta is -1'),
    (dict(loss='bco', desirable_weight=0), 'desirable_weight is 0'),
    (dict(name='ranking'), 'needs num_answers'),
    (dict(name='ranking', num_answers=1), 'num_answers is 1'),
    (dict(name='ranking', num_answers='3'), "num_answers is '3'"),
    (dict(name='ranking', num_answers=3, reference='none'), 'reference'),
  ],
)
def test_what_does_not_fit_is_refused(options, message):
  with pytest.raises(ValueError, match=message):
    _method(**options)


@pytest.mark.parametrize(
  ('options', 'loss'),
  [
    (dict(loss='kto'), 0.5),
    (dict(loss='bco'), np.log(2)),
    (dict(loss='bco', shift=0.0), None),
    (dict(loss='bco', shift=1.0), None),
    (dict(loss='kto', desirable_weight=2.0), None),
  ],
)
def test_what_is_known_of_the_start(options, loss):
  """A loss that depends on how many of each class there are is not."""
  method = _method(**options)
  known = {k: float(v) for k, v in method.at_start.items()}
  expected = {} if loss is None else {'loss': pytest.approx(loss)}
  assert known == {'rewards/chosen': 0.0, 'rewards/rejected': 0.0} | expected
  records = _labelled()
  if options['loss'] == 'kto':
    records = mismatch.attach(records, seed=0, max_length=64)
  (packed,) = batches.eval_batches(records, 3, batch_size=100)
  evaluate = forests.make_eval_step(method)
  frozen = types.Frozen(reference=POLICY)
  aux = method.init_aux(POLICY)
  out = evaluate(POLICY, frozen, aux, packed[0], jax.random.key(0))
  for name, value in known.items():
    assert _mean(out[name]) == pytest.approx(value, abs=1e-5)
  assert _mean(out['rewards/accuracies']) == 0 or options.get('shift')
