"""Where online methods come to rest: optima, biases and equilibria.

Expected policies are float64 NumPy; what is trained is a real model, by the
loop, the sampler and the methods that a run uses.
"""

import itertools
import math

import numpy as np
import pytest

from dpo_jax import losses
from dpo_jax.methods import judging
from tests.theory import arms, bandit

SEED = 0
BETA = 0.5


def _world():
  rng = np.random.default_rng(SEED)
  shape = (1, arms.ARMS)
  reference = bandit.log_softmax(rng.normal(size=shape))
  return bandit.World(reference, rng.normal(size=shape), BETA)


WORLD = _world()
REFERENCE, REWARD = WORLD.reference[0], WORLD.reward[0]


def _objective(logp) -> float:
  """E[r] - beta KL, Eq. 3."""
  return float(np.exp(logp) @ (REWARD - BETA * (logp - REFERENCE)))


def _gap(logp) -> float:
  """What is missing to the optimum, as a share of all that can be gained."""
  best = _objective(bandit.optimum(WORLD)[0])
  return (best - _objective(logp)) / (best - _objective(REFERENCE))


def _by_reward(rollouts) -> judging.Judged:
  return judging.Judged(
    scores_N=np.float32(REWARD[arms.arms_of(rollouts.texts)])
  )


def _by_matrix(wins_AxA):
  """The answers of a prompt are compared by these win rates."""

  def judge(rollouts) -> judging.Judged:
    arm_BxK = arms.arms_of(rollouts.texts).reshape(-1, rollouts.num_samples)
    wins = wins_AxA[arm_BxK[:, :, None], arm_BxK[:, None]]
    return judging.Judged(wins_BxKxK=np.float32(wins))

  return judge


@pytest.mark.long
def test_ppo_reaches_the_optimum():
  section = dict(
    name='ppo',
    kl_coefficient=BETA,
    value_coefficient=0.5,
    value_clip=None,
  )
  logp = arms.train(
    section, _by_reward, REFERENCE, collections=150, epochs=2, value=True
  )
  assert _gap(logp) < 0.02
  assert _gap(REFERENCE) == 1


def _sampled_pairs(count: int) -> list[tuple[int, int]]:
  """(preferred, rejected) arms, drawn as Eq. 1 says."""
  rng = np.random.default_rng(SEED + 1)
  wins = bandit.bradley_terry(WORLD.reward)[0]
  first = rng.integers(arms.ARMS, size=count)
  second = (first + rng.integers(1, arms.ARMS, size=count)) % arms.ARMS
  won = rng.random(count) < wins[first, second]
  return [(i, j) if w else (j, i) for i, j, w in zip(first, second, won)]


@pytest.mark.long
def test_ppo_with_a_learned_reward_reaches_the_optimum():
  """That of the rewards which explain the pairs best: the true ones, almost."""
  pairs = _sampled_pairs(20_000)
  learned = arms.learn_reward(pairs, REFERENCE)
  fit = _hunter(*_counts(pairs))
  np.testing.assert_allclose(
    learned - learned.mean(), np.log(fit) - np.log(fit).mean(), atol=0.01
  )

  def judge(rollouts) -> judging.Judged:
    return judging.Judged(
      scores_N=np.float32(learned[arms.arms_of(rollouts.texts)])
    )

  section = dict(
    name='ppo', kl_coefficient=BETA, value_coefficient=0.5, value_clip=None
  )
  logp = arms.train(
    section, judge, REFERENCE, collections=150, epochs=2, value=True
  )
  assert _gap(logp) < 0.02


def _counts(pairs) -> tuple[np.ndarray, np.ndarray]:
  """(comparisons of each two arms, wins of each arm), f64."""
  won = np.zeros((arms.ARMS, arms.ARMS))
  np.add.at(won, tuple(np.transpose(pairs)), 1.0)
  return won + won.T, won.sum(axis=1)


def _hunter(compared_AxA, wins_A) -> np.ndarray:
  """Strengths that explain comparisons best, f64[ARMS], with sum 1.

  By the minorisation of D. Hunter, Ann. Statist. 32(1), 2004.
  """
  strength = np.ones(arms.ARMS)
  for _ in range(20_000):
    sums = strength[:, None] + strength[None]
    strength = wins_A / (compared_AxA / sums).sum(axis=1)
    strength /= strength.sum()
  return strength


@pytest.mark.parametrize(
  'options',
  [
    pytest.param(dict(advantage='leave_one_out'), id='rloo'),
    pytest.param(
      dict(advantage='group_relative', scale=False),
      id='group_relative',
    ),
  ],
)
@pytest.mark.long
def test_advantages_of_a_group_reach_the_optimum(options):
  """Unscaled, group-relative ones are (K - 1) / K of RLOO's."""
  section = dict(name='ppo', kl_coefficient=BETA, **options)
  logp = arms.train(section, _by_reward, REFERENCE, collections=150)
  assert _gap(logp) < 0.02


def _group_gradient(logp, count, scale) -> np.ndarray:
  """E[A 1{arm}] of GRPO's advantages of groups of `count`, f64[ARMS].

  By all the ways in which a group can fall on the arms.
  """
  out = np.zeros(arms.ARMS)
  for bars in itertools.combinations(
    range(count + arms.ARMS - 1), arms.ARMS - 1
  ):
    edges = (-1, *bars, count + arms.ARMS - 1)
    n = np.diff(edges) - 1
    ways = math.factorial(count) / np.prod([math.factorial(x) for x in n])
    probability = ways * np.exp(n @ logp)
    mean = n @ REWARD / count
    deviation = np.sqrt(n @ (REWARD - mean) ** 2 / (count - 1))
    divisor = deviation + 1e-4 if scale else 1.0
    out += probability * n / count * (REWARD - mean) / divisor
  return out


def _rest_of_grpo(count, scale) -> np.ndarray:
  """Where the gradient of the group's advantages is that of the penalty.

  The gradient of k3 on the policy's own samples has the mean of that of
  KL(reference || policy): beta (policy - reference) for a table of logits.
  """
  z = REFERENCE.copy()
  for _ in range(20_000):
    logp = bandit.log_softmax(z[None])[0]
    penalty = BETA * (np.exp(logp) - np.exp(REFERENCE))
    z += 0.2 * (_group_gradient(logp, count, scale) - penalty)
  return bandit.log_softmax(z[None])[0]


@pytest.mark.long
@pytest.mark.parametrize('scale', [False, True])
def test_grpo_rests_where_its_biases_say(scale):
  """Its penalty is another KL, and groups count by their deviation."""
  section = dict(
    name='ppo',
    advantage='group_relative',
    scale=scale,
    kl_coefficient=BETA,
    kl_in='loss',
    kl_estimator='k3',
  )
  logp = arms.train(section, _by_reward, REFERENCE, collections=200)
  expected = _rest_of_grpo(8, scale)
  np.testing.assert_allclose(np.exp(logp), np.exp(expected), atol=0.01)
  assert _gap(expected) > 0.02


@pytest.mark.long
def test_online_dpo_reaches_the_optimum_of_a_bradley_terry_judge():
  section = dict(name='online_dpo', loss='dpo', beta=BETA, labels='sampled')
  judge = _by_matrix(bandit.bradley_terry(WORLD.reward)[0])
  logp = arms.train(section, judge, REFERENCE, collections=300)
  assert _gap(logp) < 0.02


# Arm 0 beats 1, 1 beats 2 and 2 beats 0, in these shares of comparisons; arm 3
# loses to all.
CYCLE = np.full((arms.ARMS, arms.ARMS), 0.5)
for i, j, p in ((0, 1, 0.9), (1, 2, 0.7), (2, 0, 0.6)):
  CYCLE[i, j], CYCLE[j, i] = p, 1 - p
CYCLE[3, :3], CYCLE[:3, 3] = 0.2, 0.8
SKEWED = np.log(np.array([0.4, 0.3, 0.1, 0.2]))


def _nash(tau) -> np.ndarray:
  """log pi of the KL-regularised Nash policy, f64.

  pi is proportional to reference exp(P(. > pi) / tau): Eq. 6, arXiv:2403.08635.
  """
  logp = SKEWED.copy()
  for _ in range(100_000):
    step = SKEWED + CYCLE @ np.exp(logp) / tau
    logp = bandit.log_softmax((0.99 * logp + 0.01 * step)[None])[0]
  return logp


def _bradley_terry_fit(beta) -> np.ndarray:
  """log pi of the rewards that explain pairs of the reference best."""
  pairs = np.exp(SKEWED)[:, None] * np.exp(SKEWED)[None] * (1 - np.eye(4))
  strength = _hunter(pairs, (pairs * CYCLE).sum(axis=1))
  return bandit.log_softmax((SKEWED + np.log(strength) / beta)[None])[0]


@pytest.mark.long
def test_online_ipo_finds_the_nash_policy_of_a_cycle():
  section = dict(name='online_dpo', loss='ipo', beta=BETA, labels='sampled')
  logp = arms.train(section, _by_matrix(CYCLE), SKEWED, collections=300)
  expected = np.exp(_nash(BETA))
  np.testing.assert_allclose(np.exp(logp), expected, atol=0.02)
  # No policy does better against it than it does itself.
  other = np.exp(_bradley_terry_fit(BETA))
  assert np.abs(expected - other).max() > 0.05


@pytest.mark.usefixtures('float64')
def test_offline_dpo_of_a_cycle_lands_on_the_bradley_terry_fit():
  pairs = np.exp(SKEWED)[:, None] * np.exp(SKEWED)[None] * CYCLE
  loss = bandit.population_loss(
    lambda x: losses.PREFERENCE_LOSSES['dpo'](x, beta=BETA),
    SKEWED[None],
    pairs[None],
  )
  logits = bandit.minimise(loss, SKEWED[None])
  policy = np.exp(bandit.log_softmax(logits)[0])
  np.testing.assert_allclose(
    policy, np.exp(_bradley_terry_fit(BETA)), atol=1e-6
  )
  assert np.abs(policy - np.exp(_nash(BETA))).max() > 0.05
