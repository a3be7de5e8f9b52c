"""Methods that are not of this package train through the same step.

A reward model, whose scores are no log-probabilities, and adapters on a frozen
base: several steps of each against the same computation in float64 NumPy.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dpo_jax import types
from dpo_jax.data import batches
from dpo_jax.losses import logprobs
from dpo_jax.methods import dpo, scoring, sft
from dpo_jax.training import step
from tests import bigram, forests

STEPS, RATE, BETA = 4, 0.5, 0.3
RECORDS = forests.random_records(2, num=9, min_prompt=1)


def _packed():
  """Batches of 8 pairs, in 4 rows with several trees each."""
  return batches.train_batches(RECORDS, STEPS, 4, 0, batch_size=8, max_shapes=1)


def _pairs(packed, index):
  """(prompt, chosen, rejected) of the pairs of a batch, as token ids."""
  return [
    (RECORDS.prompt(record), *(RECORDS.completions(record)[c] for c in example))
    for record, examples in packed.placement.stream.slice(
      8 * index, 8 * index + 8
    )
    for example in examples
  ]


def _train(method, params, frozen, packed, accumulation_steps=1):
  """[parameters, loss] after each step of SGD."""
  optimizer = optax.sgd(RATE)
  params = jax.tree.map(jnp.copy, params)
  state = step.init_state(method, optimizer, params, jax.random.key(0))
  train_step = step.make_train_step(
    method, optimizer, accumulation_steps=accumulation_steps
  )
  out = []
  for i in range(STEPS):
    state, metrics = train_step(state, frozen, packed[i])
    total, count = metrics['loss']
    out.append((jax.device_get(state.params), float(total / count)))
  return out


def _sigmoid(x):
  return 1 / (1 + np.exp(-x))


# a. Scores that are not log-probabilities.


def _reward_model(coupled: bool) -> types.Method:
  """Bradley-Terry on a value that is read at a completion's last token.

  coupled: rejected answers are compared by their mean over the batch.
  """

  def score(params, frozen, batch, key):
    del frozen, key
    hidden = bigram.POLICY.hidden(params, batch.tokens_RxL, batch.layout)
    last_RxSxV = logprobs.take_rows(hidden, batch.slot_last_RxS)
    return {'values': last_RxSxV @ params['value_head']}

  def objective(scores, batch, aux):
    del aux
    values = logprobs.example_slots(scores['values'], batch).reshape(-1, 2)
    weight = batch.example_weight_RxE.reshape(-1)
    chosen, rejected = values[:, 0], values[:, 1]
    if coupled:
      rejected = jnp.sum(rejected * weight) / weight.sum()
    margin = chosen - rejected
    loss = jnp.sum(-jax.nn.log_sigmoid(margin) * weight)
    return loss, weight.sum(), {'margin': (jnp.sum(margin * weight), 8)}

  return types.Method(
    score=score,
    objective=objective,
    coupled=coupled,
    arity=2,
    at_start={},
    **scoring.bind_reference('none', None),
  )


@pytest.mark.parametrize(
  ('coupled', 'accumulation_steps'),
  [(False, 1), (False, 2), (True, 1), (True, 4)],
)
def test_a_reward_model(coupled, accumulation_steps):
  packed, method = _packed(), _reward_model(coupled)
  head = np.random.default_rng(0).normal(size=bigram.VOCAB)
  params = {'value_head': jnp.float32(head)}
  evaluate = forests.make_eval_step(method)
  for i, (found, loss) in enumerate(
    _train(method, params, types.Frozen(), packed, accumulation_steps)
  ):
    last = np.array([(w[-1], r[-1]) for _, w, r in _pairs(packed, i)])
    chosen, rejected = head[last].T
    margin = chosen - (rejected.mean() if coupled else rejected)
    assert loss == pytest.approx(np.logaddexp(0, -margin).mean(), rel=1e-5)
    out = evaluate(
      {'value_head': jnp.float32(head)},
      types.Frozen(),
      None,
      packed[i],
      jax.random.key(0),
    )
    assert out.keys() == {'loss', 'margin'}
    assert float(out['loss'][0]) / 8 == pytest.approx(loss, rel=1e-5)
    slope = _sigmoid(-margin) / 8
    gradient = np.zeros(bigram.VOCAB)
    np.add.at(gradient, last[:, 0], -slope)
    np.add.at(gradient, last[:, 1], slope.mean() if coupled else slope)
    head = head - RATE * gradient
    np.testing.assert_allclose(found['value_head'], head, atol=1e-5)


# b. Adapters on a frozen base.


BASE, OTHER = bigram.params(0), bigram.params(1)
# The table of logits is base * (1 + scale), a scale for each previous token.
ADAPTED = bigram.POLICY._replace(
  combine=lambda params, base: (
    params
    if base is None
    else {'table': base['table'] * (1 + params['scale'])[:, None]}
  )
)


def _log_softmax(table):
  return table - np.log(np.exp(table).sum(-1, keepdims=True))


def _expected(packed, reference):
  """[scale, loss] after each step of DPO by SGD, in float64."""
  base = np.float64(BASE['table'])
  reference = _log_softmax(np.float64(reference['table']))
  scale, out = np.zeros(bigram.VOCAB), []
  for i in range(STEPS):
    table = base * (1 + scale)[:, None]
    logps = _log_softmax(table)
    loss, gradient = 0.0, np.zeros_like(table)
    for prompt, *answers in _pairs(packed, i):
      margin, slopes = 0.0, np.zeros_like(table)
      for sign, answer in zip((1, -1), answers):
        ids = [*prompt, *answer]
        before, after = ids[len(prompt) - 1 : -1], ids[len(prompt) :]
        margin += sign * (logps - reference)[before, after].sum()
        np.add.at(slopes, (before, after), sign)
        np.add.at(slopes, before, -sign * np.exp(logps[before]))
      loss += np.logaddexp(0, -BETA * margin) / 8
      gradient -= BETA * _sigmoid(-BETA * margin) * slopes / 8
    scale = scale - RATE * (gradient * base).sum(axis=1)
    out.append((scale, loss))
  return out


@pytest.mark.parametrize('accumulation_steps', [1, 2])
@pytest.mark.parametrize('reference', [None, OTHER], ids=['base', 'other'])
def test_an_adapter_is_trained_on_a_frozen_base(reference, accumulation_steps):
  """The reference is the base without the adapter, or parameters apart."""
  packed = _packed()
  method = dpo.make(beta=BETA, reference='in_step')(ADAPTED)
  frozen = method.freeze(reference, BASE)
  assert frozen.base is BASE and frozen.reference is reference
  params = {'scale': jnp.zeros(bigram.VOCAB)}
  found = _train(method, params, frozen, packed, accumulation_steps)
  expected = _expected(packed, BASE if reference is None else reference)
  assert (found[0][1] == pytest.approx(np.log(2))) == (reference is None)
  for (params, loss), (scale, expected_loss) in zip(found, expected):
    assert loss == pytest.approx(expected_loss, rel=1e-4)
    np.testing.assert_allclose(params['scale'], scale, rtol=1e-3, atol=1e-5)
  assert np.abs(scale).max() > 0.01
  np.testing.assert_array_equal(BASE['table'], bigram.params(0)['table'])


def test_an_adapter_with_another_kind_of_reference_holds_only_the_base():
  for kind in ('cached', 'drifting'):
    method = dpo.make(beta=BETA, reference=kind)(ADAPTED)
    assert method.freeze(OTHER, BASE) == types.Frozen(base=BASE)
    assert method.freeze(OTHER) == types.Frozen()


def test_a_drifting_reference_is_an_adapter_too():
  """Before it first moves, it is the base: as above."""
  packed = _packed()
  method = dpo.make(
    beta=BETA, reference='drifting', reference_options=dict(every=99)
  )(ADAPTED)
  params = {'scale': jnp.zeros(bigram.VOCAB)}
  found = _train(method, params, method.freeze(None, BASE), packed)
  for (params, loss), (scale, expected_loss) in zip(
    found, _expected(packed, BASE)
  ):
    assert loss == pytest.approx(expected_loss, rel=1e-4)
    np.testing.assert_allclose(params['scale'], scale, rtol=1e-3, atol=1e-5)


def test_a_base_without_adapters_is_refused():
  method = sft.make()(bigram.POLICY)
  with pytest.raises(ValueError, match='no adapters'):
    method.score(OTHER, types.Frozen(base=BASE), _packed()[0], None)
