"""Where the objectives land when labels are flipped, or never doubtful.

Two answers a prompt; the first is the better one with probability p, and a
label is flipped with probability FLIP, so that it is seen to be the better one
with probability q = e + (1 - 2e) p. h is the difference of the log-ratios.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax import losses
from tests.theory import bandit

pytestmark = pytest.mark.usefixtures('float64')

close = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6)
FLIP = 0.2
BETA = 0.4
P = np.array([0.03, 0.3, 0.5, 0.8, 0.99])
Q = FLIP + (1 - 2 * FLIP) * P

# name, options, the population's h.
MINIMISERS = [
  # sigma(beta h) = q: the noise is believed.
  ('dpo', {}, bandit.logit(Q) / BETA),
  # sigma(beta h) = e + (1 - 2e) q: shrunk twice.
  (
    'dpo',
    dict(label_smoothing=FLIP),
    bandit.logit(FLIP + (1 - 2 * FLIP) * Q) / BETA,
  ),
  # sigma(beta h) = p: unbiased (arXiv:2403.00409).
  ('robust', dict(label_smoothing=FLIP), bandit.logit(P) / BETA),
  # h = (2q - 1) / (2 tau) = (1 - 2e)(2p - 1) / (2 tau) (arXiv:2310.12036).
  ('ipo', dict(normalise='sums'), (1 - 2 * FLIP) * (2 * P - 1) / (2 * BETA)),
  # beta h = (2q - 1) logit(1 - e), of a KL whose first place is the policy's
  # (arXiv:2402.00856).
  (
    'exo',
    dict(label_smoothing=0.1),
    (2 * Q - 1) * bandit.logit(0.9) / BETA,
  ),
]


def _loss(name, **options):
  return functools.partial(losses.PREFERENCE_LOSSES[name], **options)


def _labels(first):
  """How often each of two answers is labelled the better one, f64[X, 2, 2]."""
  preferred = np.zeros((len(first), 2, 2))
  preferred[:, 0, 1], preferred[:, 1, 0] = first, 1 - first
  return preferred


def _reference(seed=0):
  rng = np.random.default_rng(seed)
  return bandit.log_softmax(rng.normal(size=(len(P), 2)))


def _ratios(policy, reference):
  """h, f64[X]."""
  ratio = policy - reference
  return ratio[:, 0] - ratio[:, 1]


@pytest.mark.parametrize(
  ('name', 'options', 'expected'),
  MINIMISERS,
  ids=['dpo', 'cdpo', 'rdpo', 'ipo', 'exo'],
)
def test_the_populations_minimiser_under_flipped_labels(
  name, options, expected
):
  reference = _reference()
  loss = _loss(name, beta=BETA, **options)
  total = bandit.population_loss(loss, reference, _labels(Q))
  landed = bandit.log_softmax(bandit.minimise(total, reference))
  close(_ratios(landed, reference), expected)


def test_the_minimisers_of_noisy_labels_differ():
  """Else the test above could not tell the objectives apart."""
  found = np.array([h for _, _, h in MINIMISERS])
  distance = np.abs(found[:, None] - found[None]).max(-1)
  assert (distance + np.eye(len(found)) > 0.1).all()


@pytest.mark.parametrize(
  ('name', 'expected'),
  [
    # The SPPO update: log pi/pi_ref = (1 / beta) (q - 1/2), arXiv:2405.00675.
    ('sppo', lambda q: (q - 0.5) / BETA),
    # beta log pi/pi_ref = log 2q, K q for K answers, arXiv:2402.05369.
    ('nca', lambda q: np.log(2 * q) / BETA),
  ],
)
def test_the_minimisers_of_each_answers_own_log_ratio(name, expected):
  """Without normalisation: these know an answer's level, not only h."""
  reference, loss = _reference(), _loss(name, beta=BETA)
  total = bandit.population_loss(loss, reference, _labels(Q), normalised=False)
  landed = bandit.minimise(total, reference)
  close(landed - reference, expected(np.stack([Q, 1 - Q], axis=-1)))


@pytest.mark.parametrize('q', [0.45, 0.55, 0.99])
def test_the_hinge_sees_the_majority_alone(q):
  """It rests at beta h = 1 or -1, however close q is to 1/2."""
  total = bandit.population_loss(
    _loss('hinge', beta=BETA), np.zeros((1, 2)), _labels(np.array([q]))
  )
  slope, rest = jax.jit(jax.grad(total)), np.sign(q - 0.5) / BETA
  below, above = (
    slope(np.array([[rest + move, 0.0]]))[0, 0] for move in (-0.01, 0.01)
  )
  assert below < 0 < above


def test_robust_dpo_of_noisy_labels_lands_on_eq_4():
  """As DPO does of clean ones; DPO of noisy ones stays closer to pi_ref."""
  w = bandit.world(0)
  clean = bandit.bradley_terry(w.reward)
  noisy = FLIP + (1 - 2 * FLIP) * clean
  robust = _loss('robust', beta=w.beta, label_smoothing=FLIP)
  distance = {}
  for name, loss in (('robust', robust), ('dpo', _loss('dpo', beta=w.beta))):
    total = bandit.population_loss(loss, w.reference, noisy)
    landed = bandit.log_softmax(bandit.minimise(total, w.reference))
    distance[name] = (np.exp(landed) * (landed - w.reference)).sum()
    if name == 'robust':
      close(landed, bandit.optimum(w))
  assert distance['dpo'] < 0.5 * distance['robust']


@pytest.mark.parametrize('beta', [0.1, 2.0])
def test_labels_without_doubt_drive_dpo_without_end(beta):
  """For every beta: the reference holds it less and less, h grows as log t."""
  reference = _reference()
  total = bandit.population_loss(
    _loss('dpo', beta=beta), reference, _labels(np.ones(len(P)))
  )
  slope = jax.jit(jax.grad(total))

  @jax.jit
  def descend(logits):
    body = lambda _, x: x - slope(x) / beta**2  # noqa: E731
    return jax.lax.fori_loop(0, 1000, body, logits)

  logits, found = jnp.asarray(reference), []
  for _ in range(3):
    logits = descend(logits)
    found.append(beta * _ratios(bandit.log_softmax(logits), reference))
  assert np.diff(found, axis=0).min() > 0.3
  assert np.min(found) > 7  # cDPO's rest with FLIP is at 1.4.
  # However far h is, the slope is -beta sigma(-beta h): there is no rest.
  for m in (5.0, 30.0):
    far = reference + np.array([[m / beta, 0.0]])
    at_far = np.asarray(slope(far))[:, 0]
    close(at_far / (beta * bandit.sigmoid(-m)), -1)


@pytest.mark.parametrize('beta', [0.1, 2.0])
@pytest.mark.parametrize(
  ('name', 'options', 'rest'),
  [
    ('ipo', dict(normalise='sums'), lambda beta: 1 / (2 * beta)),
    (
      'dpo',
      dict(label_smoothing=FLIP),
      lambda beta: bandit.logit(1 - FLIP) / beta,
    ),
  ],
  ids=['ipo', 'cdpo'],
)
def test_labels_without_doubt_leave_ipo_and_cdpo_at_rest(
  name, options, rest, beta
):
  """IPO at h = 1 / (2 tau), cDPO at beta h = logit(1 - e), 1.386 for 0.2."""
  reference = _reference()
  loss = _loss(name, beta=beta, **options)
  total = bandit.population_loss(loss, reference, _labels(np.ones(len(P))))
  landed = bandit.log_softmax(bandit.minimise(total, reference))
  close(_ratios(landed, reference), rest(beta))


def test_ipos_policy_of_two_arms_is_sigma_of_half_over_tau():
  """A uniform reference, and the first arm always wins (arXiv:2310.12036)."""
  reference = np.log(np.full((1, 2), 0.5))
  for tau in (0.1, 1.0):
    loss = _loss('ipo', beta=tau, normalise='sums')
    total = bandit.population_loss(loss, reference, _labels(np.ones(1)))
    landed = bandit.log_softmax(bandit.minimise(total, reference))
    close(np.exp(landed[0, 0]), bandit.sigmoid(0.5 / tau))
