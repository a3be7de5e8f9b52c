"""Reward models as methods, against float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dpo_jax import methods, models, types
from dpo_jax.data import batches, store
from dpo_jax.data import records as records_lib
from dpo_jax.training import step
from tests import bigram, forests

# The reward of a completion is the head's value for its last token.
POLICY = bigram.POLICY._replace(
  scalar=lambda params, hidden: hidden @ params['score']
)
# Halves: some completions tie.
HEAD = np.round(3 * np.random.default_rng(0).normal(size=bigram.VOCAB)) / 2
PARAMS = {'score': jnp.float32(HEAD)}
PAIRS = forests.random_records(2, num=9, min_prompt=1)


def _labelled(labels):
  """Records of one completion each, with these labels or ratings."""
  rng, builder = np.random.default_rng(5), store.Builder()
  for i, label in enumerate(labels):
    record = records_lib.Record(
      prompt='',
      completions=('',),
      examples=((0,),),
      labels=(label,),
      file='forest',
      row=i + 1,
    )
    prompt, answer = (rng.integers(0, bigram.VOCAB, n).tolist() for n in (3, 4))
    builder.add(record, prompt, [answer])
  return builder.finish()


def _method(policy=POLICY, **options):
  return methods.build(dict(name='reward_model', **options))(policy)


def _evaluate(method, records, params=PARAMS):
  """Metrics of one batch that holds all, and more places than examples."""
  (packed,) = batches.eval_batches(records, 3, batch_size=100)
  assert (packed[0].example_weight_RxE == 0).any()
  evaluate = forests.make_eval_step(method)
  out = evaluate(params, types.Frozen(), None, packed[0], jax.random.key(0))
  return {name: [float(x) for x in parts] for name, parts in out.items()}


def _rewards(records):
  """float64 [P, K] of all examples."""
  return np.array(
    [
      [HEAD[records.completions(i)[c][-1]] for c in example]
      for i in range(len(records))
      for example in records.examples(i)
    ]
  )


def _mean(parts):
  return parts[0] / parts[1]


def test_pairs_are_equation_2():
  r = _rewards(PAIRS)
  out = _evaluate(_method(margin=0.2, centre_coefficient=0.1), PAIRS)
  margins = r[:, 0] - r[:, 1]
  loss = np.logaddexp(0, 0.2 - margins) + 0.1 * r.sum(1) ** 2
  expected = {
    'loss': loss,
    'rewards/chosen': r[:, 0],
    'rewards/rejected': r[:, 1],
    'rewards/margins': margins,
    'rewards/accuracies': margins > 0,
    'rewards/ties': margins == 0,
    'rewards/mean': r.mean(1),
  }
  assert out.keys() == expected.keys()
  for name, values in expected.items():
    assert out[name][1] == len(r)
    assert _mean(out[name]) == pytest.approx(values.mean(), rel=1e-5), name
    if name != 'loss':
      squares = np.square(values.astype(float)).sum()
      assert out[name][2] == pytest.approx(squares, rel=1e-5), name
  assert out['rewards/ties'][0] > 0  # Two completions end with the same token.


def test_a_zero_head_ties_everything():
  out = _evaluate(_method(), PAIRS, {'score': jnp.zeros(bigram.VOCAB)})
  assert _mean(out['loss']) == pytest.approx(np.log(2))
  assert _mean(out['rewards/ties']) == 1
  assert _mean(out['rewards/accuracies']) == 0


def test_rankings_are_plackett_luce():
  records = forests.random_records(6, num=7, arity=4, min_prompt=1)
  r = _rewards(records)
  method = _method(loss='plackett_luce', num_answers=4)
  assert (method.arity, method.kinds) == (4, ('ranking', 'pairs'))
  out = _evaluate(method, records)
  loss = [sum(np.log(np.exp(x[k:]).sum()) - x[k] for k in range(4)) for x in r]
  assert _mean(out['loss']) == pytest.approx(np.mean(loss), rel=1e-5)
  ordered = [
    np.mean([x[i] > x[j] for i, j in itertools.combinations(range(4), 2)])
    for x in r
  ]
  accuracies = _mean(out['rewards/accuracies'])
  assert accuracies == pytest.approx(np.mean(ordered), rel=1e-5)


def test_labels_are_classified_at_0():
  labels = [True, False, True, True, False, False, True]
  records = _labelled(labels)
  r, y = _rewards(records)[:, 0], np.array(labels)
  method = _method(loss='binary')
  assert (method.arity, method.kinds) == (1, ('unpaired',))
  out = _evaluate(method, records)
  loss = np.logaddexp(0, np.where(y, -r, r))
  assert _mean(out['loss']) == pytest.approx(loss.mean(), rel=1e-5)
  right = np.where(y, r > 0, r < 0)
  assert _mean(out['rewards/accuracies']) == pytest.approx(right.mean())
  assert _mean(out['rewards/chosen']) == pytest.approx(r[y].mean(), rel=1e-5)
  assert _mean(out['rewards/rejected']) == pytest.approx(r[~y].mean(), rel=1e-5)
  margins = np.where(y, r, -r).mean()
  assert _mean(out['rewards/margins']) == pytest.approx(margins, rel=1e-5)
  assert _mean(out['desirable']) == pytest.approx(y.mean())


def test_ratings_are_regressed():
  ratings = [3.5, 0.0, -2.0, 10.0, 1.0]
  records = _labelled(ratings)
  r = _rewards(records)[:, 0]
  out = _evaluate(_method(loss='regression'), records)
  loss = (r - ratings) ** 2
  assert _mean(out['loss']) == pytest.approx(loss.mean(), rel=1e-5)
  assert _mean(out['ratings/mean']) == pytest.approx(np.mean(ratings))
  error = np.abs(r - ratings).mean()
  assert _mean(out['rewards/error']) == pytest.approx(error, rel=1e-5)


def test_pairs_of_a_prompt_can_weigh_as_one():
  """InstructGPT's 1 / C(K, 2), where all pairs of K completions are there."""
  rng, rows = np.random.default_rng(3), []
  for count in (4, 2, 3):
    ids = [rng.integers(0, bigram.VOCAB, n).tolist() for n in range(2, 7)]
    every = list(itertools.combinations(range(count), 2))
    rows.append((ids[0], ids[1 : count + 1], every))
  records = forests.make(rows)
  method = _method(normalise='prompts')
  assert method.coupled
  out = _evaluate(method, records)
  r = _rewards(records)
  loss = np.split(np.logaddexp(0, r[:, 1] - r[:, 0]), [6, 7])
  expected = np.mean([x.mean() for x in loss])
  assert out['loss'][1] == pytest.approx(3)
  assert _mean(out['loss']) == pytest.approx(expected, rel=1e-5)
  # The metrics are of pairs.
  assert out['rewards/margins'][1] == len(r)


@pytest.mark.parametrize(
  ('normalise', 'dtype'),
  [
    ('examples', 'float32'),
    pytest.param('prompts', 'float32', marks=pytest.mark.long),
    pytest.param('examples', 'bfloat16', marks=pytest.mark.long),
    pytest.param('prompts', 'bfloat16', marks=pytest.mark.long),
  ],
)
def test_training_raises_the_margin(normalise, dtype):
  """A small transformer learns its pairs, in parts of a batch as in one."""
  config, params = models.with_scalar_head(
    forests.CONFIG, forests.params(0), jax.random.key(0), stddev=0.1
  )
  records = forests.random_records(7, num=6, min_prompt=1)
  packed = batches.train_batches(records, 6, 4, 0, batch_size=8, max_shapes=1)
  policy = models.policy(config, models.Compute(dtype=dtype))
  method = _method(policy, normalise=normalise)
  found = {}
  for parts in (1, 2):
    optimizer = optax.sgd(0.05)
    state = step.init_state(
      method, optimizer, jax.tree.map(jnp.copy, params), jax.random.key(0)
    )
    train_step = step.make_train_step(
      method, optimizer, accumulation_steps=parts
    )
    losses = []
    for batch in [packed[0]] * 6:
      state, metrics = train_step(state, types.Frozen(), batch)
      losses.append(float(metrics['loss'][0] / metrics['loss'][1]))
    found[parts] = losses
  assert found[1][-1] < 0.8 * found[1][0]
  tolerance = 1e-4 if dtype == 'float32' else 0.05
  np.testing.assert_allclose(found[1], found[2], rtol=tolerance)


def test_errors():
  with pytest.raises(ValueError, match=r"'bradly_terry'.*'bradley_terry'"):
    _method(loss='bradly_terry')
  with pytest.raises(ValueError, match='num_answers is None'):
    _method(loss='plackett_luce')
  with pytest.raises(ValueError, match=r'num_answers is 4.*plackett_luce'):
    _method(num_answers=4)
  with pytest.raises(ValueError, match=r'centre_coefficient is 0\.1'):
    _method(loss='binary', centre_coefficient=0.1)
  with pytest.raises(ValueError, match='centre_coefficient is -1'):
    _method(centre_coefficient=-1)
  with pytest.raises(ValueError, match="'binary' does not take"):
    _method(loss='binary', normalise='prompts')
  with pytest.raises(ValueError, match="'margin'"):
    _method(loss='regression', margin=0.5)
  with pytest.raises(ValueError, match='normalisation'):
    _method(normalise='prompt')
  with pytest.raises(ValueError, match='no scalar head'):
    _evaluate(_method(bigram.POLICY), PAIRS)
