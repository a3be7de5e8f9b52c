"""What is independent of a loss, through whole methods, against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import objectives
from dpo_jax import losses, methods, registry, types
from dpo_jax.data import batches
from dpo_jax.training import step
from tests import bigram, forests

BETA = 0.3
RECORDS = forests.random_records(2, num=9, min_prompt=1)


POLICY, REFERENCE = bigram.params(0), bigram.params(1)


def _pairs():
  """(prompt, chosen, rejected) of every pair."""
  return [
    (RECORDS.prompt(i), *(RECORDS.completions(i)[c] for c in example))
    for i in range(len(RECORDS))
    for example in RECORDS.examples(i)
  ]


def _sums(params, weigh=lambda answers, k: 1.0):
  """[P, 2]; weigh gives the weights of answer k's tokens."""
  return np.array(
    [
      [
        (bigram.token_logps(params, prompt, y)[0] * weigh(answers, k)).sum()
        for k, y in enumerate(answers)
      ]
      for prompt, *answers in _pairs()
    ]
  )


def _lengths():
  return np.array([[len(y) for y in answers] for _, *answers in _pairs()])


def _logps(policy, reference=None):
  return types.PairLogps(
    jnp.asarray(policy, jnp.float32),
    None if reference is None else jnp.asarray(reference, jnp.float32),
    jnp.asarray(_lengths(), jnp.int32),
  )


def _method(**options):
  section = dict(name='dpo', **options)
  return registry.build(methods.METHODS, section, 'method')()(bigram.POLICY)


def _beside(reference=True):
  return dict(reference='in_step') if reference else {}


def _mean_loss(method, records=RECORDS, batch_size=100, params=POLICY):
  """The loss of one batch that holds all, and more places than examples."""
  (packed,) = batches.eval_batches(records, 3, batch_size=batch_size)
  batch = packed[0]
  assert (batch.example_weight_RxE == 0).any()
  evaluate = forests.make_eval_step(method)
  frozen = types.Frozen(reference=REFERENCE)
  aux = method.init_aux(REFERENCE)
  out = evaluate(params, frozen, aux, batch, jax.random.key(0))
  total, count = out['loss']
  return float(total / count), out


@pytest.mark.parametrize('name', losses.PREFERENCE_LOSSES)
def test_a_method_minimises_the_mean_of_its_loss(name):
  """Padded places count for nothing, in losses that couple pairs too."""
  fn = losses.PREFERENCE_LOSSES[name]
  options = {'beta': BETA} if 'beta' in registry.options_of(fn) else {}
  properties = fn.properties
  given, _ = _mean_loss(
    _method(loss=name, **options, **_beside(properties.reference))
  )
  reference = _sums(REFERENCE) if properties.reference else None
  expected = fn(_logps(_sums(POLICY), reference), **options).mean()
  assert given == pytest.approx(float(expected), rel=1e-4)


def test_length_mean():
  given, _ = _mean_loss(_method(beta=BETA, length='mean', **_beside()))
  ratio = (_sums(POLICY) - _sums(REFERENCE)) / _lengths()
  h = BETA * (ratio[:, 0] - ratio[:, 1])
  assert given == pytest.approx(np.logaddexp(0, -h).mean(), rel=1e-5)
  same, _ = _mean_loss(_method(loss='dpo_norm', beta=BETA, **_beside()))
  assert given == pytest.approx(same, rel=1e-5)


@pytest.mark.parametrize('ld_alpha', [0.0, 0.4, 1.0])
def test_length_ld(ld_alpha):
  """Tokens beyond the shorter answer's length weigh ld_alpha."""

  def weigh(answers, k):
    public = min(map(len, answers))
    return np.where(np.arange(len(answers[k])) < public, 1.0, ld_alpha)

  assert (_lengths()[:, 0] != _lengths()[:, 1]).any()
  given, out = _mean_loss(
    _method(beta=BETA, length='ld', ld_alpha=ld_alpha, **_beside())
  )
  ratio = _sums(POLICY, weigh) - _sums(REFERENCE, weigh)
  h = BETA * (ratio[:, 0] - ratio[:, 1])
  assert given == pytest.approx(np.logaddexp(0, -h).mean(), rel=1e-5)
  total, count, _ = out['rewards/margins']
  assert float(total / count) == pytest.approx(h.mean(), rel=1e-4)
  if ld_alpha == 1:
    plain, _ = _mean_loss(_method(beta=BETA, **_beside()))
    assert given == pytest.approx(plain, rel=1e-5)


@pytest.mark.parametrize('length', ['sum', 'mean'])
@pytest.mark.parametrize('gamma', [1.0, 5.0])
def test_corrections(length, gamma):
  corrected = np.random.default_rng(3).integers(0, 2, len(RECORDS.tokens))
  extras = {'corrected': corrected.astype(np.float32)}
  records = forests.with_extras(RECORDS, extras)
  given, _ = _mean_loss(
    _method(beta=BETA, length=length, correction_weight=gamma, **_beside()),
    records,
  )
  marks = {}
  for i in range(len(RECORDS)):
    for c, span in enumerate(RECORDS.completion_spans(i)):
      marks[i, c] = 1 + (gamma - 1) * corrected[span]
  ratio = []
  for i in range(len(RECORDS)):
    for example in RECORDS.examples(i):
      for c in example:
        y, w = RECORDS.completions(i)[c], marks[i, c]
        policy, reference = (
          bigram.token_logps(params, RECORDS.prompt(i), y)[0]
          for params in (POLICY, REFERENCE)
        )
        by = w.sum() if length == 'mean' else 1.0
        ratio.append(((policy - reference) * w).sum() / by)
  h = BETA * (np.array(ratio[::2]) - np.array(ratio[1::2]))
  assert given == pytest.approx(np.logaddexp(0, -h).mean(), rel=1e-5)


def test_corrections_need_marks():
  method = _method(beta=BETA, length='mean', correction_weight=5.0, **_beside())
  with pytest.raises(ValueError, match="corrections='diff'"):
    _mean_loss(method)


def test_wpo():
  """The weight is at most 1, the product over both answers, and constant."""
  method = _method(beta=BETA, weighting='wpo', **_beside())
  policy = bigram.params(0, 0.3)
  given, out = _mean_loss(method, params=policy)
  weights = []
  for prompt, *answers in _pairs():
    parts = [bigram.token_logps(policy, prompt, y) for y in answers]
    weights.append(sum((logp - log_c).mean() for logp, log_c in parts))
  weights = np.minimum(np.exp(weights), 1)
  assert weights.min() < 0.9 * weights.max()
  ratio = _sums(policy) - _sums(REFERENCE)
  h = BETA * (ratio[:, 0] - ratio[:, 1])
  assert given == pytest.approx(
    (weights * np.logaddexp(0, -h)).mean(), rel=1e-5
  )
  total, count = out['wpo_weight']
  assert float(total / count) == pytest.approx(weights.mean(), rel=1e-5)

  gradient = _gradient(method, policy)
  pairwise = _gradient(_method(beta=BETA, **_beside()), policy)
  assert np.abs(gradient - pairwise).max() > 1e-3
  # Constant: the gradient is that of the losses with these very weights.
  example = iter(weights)
  weigh = [next(example) for _ in weights]
  assert gradient == pytest.approx(_weighted_gradient(policy, weigh), abs=1e-5)


def _gradient(method, params):
  (packed,) = batches.eval_batches(RECORDS, 3, batch_size=100)
  frozen, aux = types.Frozen(reference=REFERENCE), method.init_aux(REFERENCE)
  total, (_, count, _) = step.batch_gradient(
    method, params, frozen, aux, packed[0], jax.random.key(0), 1
  )
  return np.asarray(total['table'] / count)


def _weighted_gradient(params, weights):
  """Of the weighted DPO losses, by the bigram's own arithmetic."""

  def loss(table):
    logps = jax.nn.log_softmax(table)
    total = 0.0
    for weight, (prompt, *answers) in zip(weights, _pairs(), strict=True):
      ratio = []
      for y in answers:
        ids = np.array([*prompt, *y])
        before, after = ids[len(prompt) - 1 : -1], ids[len(prompt) :]
        reference = bigram.token_logps(REFERENCE, prompt, y)[0].sum()
        ratio.append(logps[before, after].sum() - reference)
      total -= weight * jax.nn.log_sigmoid(BETA * (ratio[0] - ratio[1]))
    return total / len(weights)

  return np.asarray(jax.grad(loss)(params['table']))


@pytest.mark.parametrize('normalise', ['sums', 'tokens'])
def test_an_added_likelihood_term_sees_plain_sums(normalise):
  plus = dict(preferred_ft=dict(weight=0.7, normalise=normalise))
  options = dict(beta=BETA, length='ld', ld_alpha=0.4, **_beside())
  given, _ = _mean_loss(_method(plus=plus, **options))
  alone, _ = _mean_loss(_method(**options))
  chosen = -_sums(POLICY)[:, 0]
  if normalise == 'tokens':
    chosen = chosen / _lengths()[:, 0]
  assert given == pytest.approx(alone + 0.7 * chosen.mean(), rel=1e-5)


def test_an_added_comparison_sees_the_pairs_as_the_loss_does():
  options = dict(length='ld', ld_alpha=0.4, **_beside())
  plus = dict(hinge=dict(weight=2.0, beta=0.5))
  given, _ = _mean_loss(_method(beta=BETA, plus=plus, **options))
  first, _ = _mean_loss(_method(beta=BETA, **options))
  second, _ = _mean_loss(_method(loss='hinge', beta=0.5, **options))
  assert given == pytest.approx(first + 2 * second, rel=1e-5)


@pytest.mark.parametrize('name', losses.DIVERGENCES)
def test_divergences(name):
  given, out = _mean_loss(_method(beta=BETA, divergence=name, **_beside()))
  # u = pi / pi_ref: f'(u), up to a constant.
  slope = {
    'reverse_kl': np.log,
    'forward_kl': lambda u: -1 / u,
    'jensen_shannon': lambda u: np.log(2 * u / (1 + u)),
    'alpha': lambda u: (1 - u**-0.5) / 0.5,
  }[name]
  # The arithmetic of the losses is float32: keep ratios where it resolves them.
  f = slope(np.exp(_sums(POLICY) - _sums(REFERENCE)))
  reward = BETA * (f[:, 0] - f[:, 1])
  assert given == pytest.approx(np.logaddexp(0, -reward).mean(), rel=1e-3)
  total, count, _ = out['rewards/margins']
  assert float(total / count) == pytest.approx(reward.mean(), rel=1e-3)


def test_a_drifting_reference_follows_the_policy():
  """Eq. by eq.: fixed between updates, then a mix; the state carries it."""
  options = dict(every=2, mix=0.25)
  method = _method(beta=BETA, reference='drifting', reference_options=options)
  (packed,) = batches.eval_batches(RECORDS, 3, batch_size=100)
  batch = packed[0]
  optimizer = optax.sgd(0.5)
  state = step.init_state(
    method, optimizer, POLICY, jax.random.key(0), reference=REFERENCE
  )
  train_step = step.make_train_step(method, optimizer)
  state = jax.tree.map(jnp.copy, state)
  reference = np.asarray(REFERENCE['table'])
  for i in range(1, 5):
    before = np.asarray(state.params['table'])
    state, metrics = train_step(state, types.Frozen(), batch)
    expected, _ = _mean_loss(
      _method(beta=BETA, **_beside()), params={'table': jnp.asarray(before)}
    )
    if i <= 2:
      total, count = metrics['loss']
      assert float(total / count) == pytest.approx(expected, rel=1e-5)
    if i % 2 == 0:
      new = np.asarray(state.params['table'])
      reference = 0.75 * reference + 0.25 * new
    np.testing.assert_allclose(
      state.aux['reference']['table'], reference, rtol=1e-5, atol=1e-6
    )
  assert np.abs(reference - np.asarray(REFERENCE['table'])).max() > 0.1


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    (dict(loss='hing'), r"loss 'hing'\. Did you mean 'hinge'"),
    (dict(loss='dpo'), 'needs beta'),
    (dict(loss='preferred_ft', beta=0.1), "option .* 'beta'"),
    (dict(loss='simpo', beta=2.0, reference='cached'), 'has no reference'),
    (dict(beta=0.1, reference='none'), 'compares with a reference'),
    (dict(beta=0.1, reference='in_stepp'), "Did you mean 'in_step'"),
    (dict(beta=0.1, reference_options=dict(mix=0.5)), "'cached'"),
    (
      dict(beta=0.1, reference='drifting', reference_options=dict(mix=2)),
      'mix is 2',
    ),
    (dict(beta=0.1, divergence='forward'), "Did you mean 'forward_kl'"),
    (dict(beta=0.1, divergence_options=dict(alpha=1)), "'alpha'"),
    (dict(loss='nca', beta=0.1, divergence='alpha'), "'nca' is not defined"),
    (dict(loss='simpo', beta=0.1, length='mean'), "'simpo' is not defined"),
    (
      dict(loss='ipo', normalise='tokens', beta=0.1, length='ld', ld_alpha=0),
      "'ipo' is not defined",
    ),
    (dict(loss='dpo_norm', beta=0.1, correction_weight=2.0), 'not defined'),
    (dict(beta=0.1, correction_weight=-1.0), 'correction_weight is -1'),
    (dict(beta=0.1, length='ld'), 'needs ld_alpha'),
    (dict(beta=0.1, ld_alpha=0.5), "'ld_alpha'"),
    (dict(beta=0.1, length='ld', ld_alpha=2), 'ld_alpha is 2'),
    (dict(beta=0.1, weighting='wop'), "Did you mean 'wpo'"),
    (dict(loss='aot', beta=0.1, weighting='wpo'), 'one by one'),
    (dict(beta=0.1, plus=dict(sft={})), "preference loss 'sft'"),
    (dict(beta=0.1, plus=dict(preferred_ft=dict(wight=1))), "'weight'"),
    (dict(beta=0.1, plus=dict(preferred_ft=dict(weight=-1.0))), 'weight is -1'),
    (dict(beta=0.1, plus=dict(preferred_ft=1.0)), 'plus.preferred_ft is 1.0'),
    (dict(beta=0.1, plus='preferred_ft'), "plus is 'preferred_ft'"),
    (
      dict(loss='slic', target='answer', length='mean'),
      "target='answer' compares sums",
    ),
    (dict(loss='dpo_norm', beta=0.1, divergence='alpha'), 'not defined'),
    (
      dict(
        loss='ipo', beta=0.1, normalise='tokens', divergence='jensen_shannon'
      ),
      'not defined',
    ),
    (
      dict(beta=0.1, reference='drifting', reference_options=dict(every=1.5)),
      'every is 1.5',
    ),
  ],
)
def test_what_does_not_fit_is_refused(options, message):
  with pytest.raises(ValueError, match=message):
    _method(**options)


@pytest.mark.parametrize('name', objectives.OBJECTIVES)
def test_pages_build(name):
  c = objectives.get_config(name).to_dict()
  registry.build(methods.METHODS, c['method'], 'method')()(bigram.POLICY)
