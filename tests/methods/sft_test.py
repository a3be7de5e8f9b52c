"""SFT as a method: what is divided by what, and its options."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax import methods, registry, types
from dpo_jax.data import batches
from dpo_jax.training import metrics as metrics_lib
from dpo_jax.training import optimizers
from dpo_jax.training import step as steps_lib
from tests import forests

VOCAB = forests.VOCAB
# A language model that NumPy can read off: a token depends on the one before.
BIGRAM = types.Policy(
  hidden=lambda params, tokens, layout: jax.nn.one_hot(tokens, VOCAB),
  head=lambda params: types.Head.whole(lambda h: h @ params['table']),
)


def _params():
  table = np.random.default_rng(0).normal(size=(VOCAB, VOCAB))
  return {'table': jnp.asarray(table, jnp.float32)}


@pytest.fixture(scope='module')
def records():
  """Single completions of 1 to 9 tokens; the last has no prompt."""
  rng = np.random.default_rng(0)

  def ids(count):
    return rng.integers(0, VOCAB, count).tolist()

  return forests.make(
    [(ids(3), [ids(n)], [(0,)]) for n in range(1, 10)]
    + [([], [ids(4)], [(0,)])]
  )


def _logps(params, records):
  """float64 log-prob of each completion, without the first token of all."""
  table = np.asarray(params['table'], np.float64)
  logps = table - np.log(np.exp(table).sum(-1, keepdims=True))
  out = []
  for i in range(len(records)):
    prompt, (answer,) = records.prompt(i), records.completions(i)
    ids = [*prompt, *answer]
    first = max(len(prompt), 1)
    terms = [logps[ids[j - 1], ids[j]] for j in range(first, len(ids))]
    out.append((sum(terms), len(terms)))
  return np.array(out)


def _method(**options):
  section = dict(name='sft') | options
  return registry.build(methods.METHODS, section, 'method')()(BIGRAM)


def _evaluate(method, params, packed):
  evaluate, total = forests.make_eval_step(method), None
  frozen = method.freeze(params)
  for index in range(len(packed)):
    out = evaluate(params, frozen, None, packed[index], jax.random.key(0))
    total = metrics_lib.add(total, out)
  return metrics_lib.means(total)


@pytest.mark.parametrize('normalise', ['tokens', 'sequences', None])
@pytest.mark.parametrize('rows, batch_size', [(2, 4), (1, 3), (1, 100)])
def test_held_out_metrics_are_means(records, rows, batch_size, normalise):
  options = dict(normalise=normalise) if normalise else {}
  (packed,) = batches.eval_batches(records, rows, batch_size=batch_size)
  means = _evaluate(_method(**options), _params(), packed)
  sums, lengths = _logps(_params(), records).T
  per_token = sums.sum() / lengths.sum()
  assert lengths.sum() == sum(range(1, 10)) + 3
  expected = {
    'loss': -sums.mean() if normalise == 'sequences' else -per_token,
    'logps/tokens': per_token,
    'logps/sequences': sums.mean(),
  }
  assert means == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize('split', [1, 2])
def test_normalisations_differ_by_the_mean_length(records, split):
  """In loss and in gradient, on a batch and on its split."""
  packed = batches.train_batches(records, 1, 2, seed=0, batch_size=6)
  batch, out = packed[0], {}
  for normalise in ('tokens', 'sequences'):
    method, params = _method(normalise=normalise), _params()
    optimizer = optimizers.sgd(1.0)
    step = steps_lib.make_train_step(
      method, optimizer, accumulation_steps=split
    )
    state = steps_lib.init_state(method, optimizer, params, jax.random.key(0))
    state, metrics = step(state, method.freeze(params), batch)
    loss = metrics['loss'][0] / metrics['loss'][1]
    out[normalise] = float(loss), _params()['table'] - state.params['table']
  length = batch.score_weight_RxN.sum() / 6
  (loss, gradient), (per_sequence, larger) = out['tokens'], out['sequences']
  assert per_sequence == pytest.approx(loss * length, rel=1e-6)
  assert np.abs(gradient).max() > 1e-2
  np.testing.assert_allclose(larger, gradient * length, rtol=1e-4, atol=1e-6)


def test_gradient_is_softmax_less_counts(records):
  """The maximum likelihood gradient of a bigram table, in closed form."""
  (packed,) = batches.eval_batches(records, 1, batch_size=100)
  method, params = _method(normalise='sequences'), _params()
  batch = packed[0]

  def loss(params):
    scores = method.score(params, types.Frozen(), batch, jax.random.key(0))
    loss_sum, count, _ = method.objective(scores, batch, None)
    return loss_sum / count

  counts = np.zeros((VOCAB, VOCAB))
  for i in range(len(records)):
    prompt, (answer,) = records.prompt(i), records.completions(i)
    ids = [*prompt, *answer]
    for j in range(max(len(prompt), 1), len(ids)):
      counts[ids[j - 1], ids[j]] += 1
  table = np.asarray(params['table'], np.float64)
  probs = np.exp(table) / np.exp(table).sum(-1, keepdims=True)
  expected = (counts.sum(-1, keepdims=True) * probs - counts) / len(records)
  gradient = jax.grad(loss)(params)['table']
  np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
  'section, message',
  [
    (dict(name='stf'), "Did you mean 'sft'"),
    (dict(name='sft', normalise='token'), "Did you mean 'tokens'"),
    (dict(name='sft', normalize='tokens'), "Did you mean 'normalise'"),
    (dict(name='sft', beta=0.1), "option of method 'sft' 'beta'"),
  ],
)
def test_wrong_options_are_errors(section, message):
  with pytest.raises(ValueError, match=message):
    registry.build(methods.METHODS, section, 'method')()
