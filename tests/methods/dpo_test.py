"""DPO as a method: exact means, what is counted, and its options."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax import methods, registry, types
from dpo_jax.data import batches
from dpo_jax.training import metrics as metrics_lib
from tests import bigram, forests

BETA = 0.3


def _method(**options):
  section = dict(name='dpo', beta=BETA, reference='in_step') | options
  return registry.build(methods.METHODS, section, 'method')()(bigram.POLICY)


def _pairs(records, params):
  """float64 log-probs of every example, [P, 2]."""
  return np.array(
    [
      [
        bigram.logp(params, records.prompt(i), records.completions(i)[c])
        for c in e
      ]
      for i in range(len(records))
      for e in records.examples(i)
    ]
  )


def _lengths(records):
  """Tokens of the completions of every example, [P, 2]."""
  return np.array(
    [
      [len(records.completions(i)[c]) for c in e]
      for i in range(len(records))
      for e in records.examples(i)
    ]
  )


@pytest.fixture(scope='module')
def records():
  """Some pairs share completions, or are there twice."""
  out = forests.random_records(2, num=7, min_prompt=1)
  assert out.example_counts.max() > 1
  return out


def _evaluate(method, params, frozen, packed):
  evaluate, total = forests.make_eval_step(method), None
  for index in range(len(packed)):
    out = evaluate(params, frozen, None, packed[index], jax.random.key(0))
    total = metrics_lib.add(total, out)
  return total


@pytest.mark.parametrize('share_prompt', [True, False])
@pytest.mark.parametrize('rows, batch_size', [(2, 3), (1, 5), (3, 100)])
def test_held_out_metrics_are_means_over_examples(
  records, rows, batch_size, share_prompt
):
  policy, reference = bigram.params(0), bigram.params(1)
  (packed,) = batches.eval_batches(
    records, rows, batch_size=batch_size, share_prompt=share_prompt
  )
  count = int(records.example_counts.sum())
  assert count % batch_size  # The last batch is a partial one.
  method = _method(label_smoothing=0.1)
  total = _evaluate(method, policy, types.Frozen(reference=reference), packed)

  logps = _pairs(records, policy)
  rewards = BETA * (logps - _pairs(records, reference))
  margins = rewards[:, 0] - rewards[:, 1]
  loss = 0.9 * np.logaddexp(0, -margins) + 0.1 * np.logaddexp(0, margins)
  expected = {
    'loss': loss,
    'rewards/chosen': rewards[:, 0],
    'rewards/rejected': rewards[:, 1],
    'rewards/margins': margins,
    'rewards/accuracies': margins > 0,
    'logps/chosen': logps[:, 0],
    'logps/rejected': logps[:, 1],
  }
  per_token = {'logps_per_token/chosen', 'logps_per_token/rejected'}
  assert total.keys() == expected.keys() | per_token
  assert 0 < expected['rewards/accuracies'].mean() < 1
  means = metrics_lib.means(total, prefix='eval/')
  for name, values in expected.items():
    assert total[name][1] == count
    assert means[f'eval/{name}'] == pytest.approx(values.mean(), rel=1e-5)
    if name != 'loss':
      squares = (np.asarray(values, float) ** 2).sum()
      assert total[name][2] == pytest.approx(squares, rel=1e-5)
  lengths = _lengths(records)
  for i, name in enumerate(('chosen', 'rejected')):
    expected = logps[:, i].sum() / lengths[:, i].sum()
    got = means[f'eval/logps_per_token/{name}']
    assert got == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize('rows, batch_size', [(2, 3), (1, 5), (3, 100)])
def test_held_out_batches_hold_each_example_once(records, rows, batch_size):
  (packed,) = batches.eval_batches(records, rows, batch_size=batch_size)
  sizes, found = [], []
  for index in range(len(packed)):
    batch = packed[index]
    used = batch.example_weight_RxE > 0
    assert set(np.unique(batch.example_weight_RxE)) <= {0.0, 1.0}
    sizes.append(int(used.sum()))
    for row, example in zip(*np.nonzero(used)):
      answers = []
      for slot in batch.example_slots_RxExK[row, example]:
        owned = batch.score_slot_RxN[row] == slot
        owned &= batch.score_weight_RxN[row] > 0
        answers.append(tuple(batch.score_token_RxN[row, owned]))
      found.append((int(batch.example_record_RxE[row, example]), *answers))
  expected = [
    (i, *(tuple(records.completions(i)[c]) for c in example))
    for i in range(len(records))
    for example in records.examples(i)
  ]
  assert sorted(found) == sorted(expected)
  full, last = divmod(len(expected), batch_size)
  assert sizes == [batch_size] * full + [last]


def test_padded_examples_count_for_nothing(records):
  """Whatever their slots, and whatever stands there."""
  batch = batches.eval_batches(records, 3, batch_size=100)[0][0]
  assert (batch.example_weight_RxE == 0).any()
  method = _method()
  shape = batch.score_weight_RxN.shape
  scores = np.random.default_rng(0).normal(size=shape).astype(np.float32)
  batch = batch.replace(
    extras_RxN={'reference': np.zeros_like(batch.score_weight_RxN)}
  )
  clean = method.objective({'logps': jnp.asarray(scores)}, batch, None)
  padding = batch.example_weight_RxE == 0
  spare = batch.slot_last_RxS.shape[1]  # A slot with one token, scored NaN.
  slots = np.where(padding[..., None], spare, batch.example_slots_RxExK)

  def longer(x, value=0):
    return np.pad(x, [(0, 0), (0, 1)], constant_values=value)

  dirty = batch.replace(
    example_slots_RxExK=slots,
    slot_length_RxS=longer(batch.slot_length_RxS),
    slot_last_RxS=longer(batch.slot_last_RxS),
    score_slot_RxN=longer(batch.score_slot_RxN, spare),
    score_weight_RxN=longer(batch.score_weight_RxN, 1.0),
    extras_RxN={'reference': longer(batch.extras_RxN['reference'])},
  )
  scores = {'logps': jnp.asarray(longer(scores, np.nan))}
  soiled = method.objective(scores, dirty, None)
  jax.tree.map(np.testing.assert_array_equal, clean, soiled)


def test_starts_at_log_2_with_accuracy_0(records):
  # Equal rewards are not a success: strictly larger ones are.
  params = bigram.params(0)
  method = _method()
  (packed,) = batches.eval_batches(records, 2, batch_size=4)
  total = _evaluate(method, params, method.freeze(params), packed)
  means = metrics_lib.means(total)
  assert means['loss'] == pytest.approx(np.log(2), rel=1e-6)
  assert means['rewards/accuracies'] == 0.0
  assert means['rewards/margins'] == means['rewards/chosen'] == 0.0


@pytest.mark.parametrize(
  'section, message',
  [
    (dict(name='dqo', beta=0.1), "Unknown method 'dqo'. Did you mean 'dpo'"),
    (dict(name='dpo', beta=0.1, loss='dpoo'), "Did you mean 'dpo'"),
    (dict(name='dpo'), "loss 'dpo' needs beta"),
    (
      dict(name='dpo', beta=0.1, label_smothing=0.1),
      "'label_smothing'. Did you mean 'label_smoothing'",
    ),
    (dict(name='dpo', beta=0.1, tau=0.1), "option of loss 'dpo' 'tau'"),
    (dict(beta=0.1), 'no name'),
  ],
)
def test_wrong_options_are_errors(section, message):
  with pytest.raises(ValueError, match=message):
    registry.build(methods.METHODS, section, 'method')()
