"""The KL of whole answers is the sum of the KLs of their tokens.

E_pi sum_t KL_t = E_pi sum_t log pi/pi_ref(y_t), for Eq. 3 of arXiv:2305.18290
and its footnote 3; every answer of a small Markov policy is enumerated.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax import types
from dpo_jax.evals import kl
from dpo_jax.training import sharding
from tests.theory import bandit

VOCAB, EOS, LENGTH = 4, 0, 4
PROMPTS = [[1], [3, 2]]
# The next token depends on the one before.
MARKOV = types.Policy(
  hidden=lambda params, tokens, layout: jax.nn.one_hot(tokens, VOCAB),
  head=lambda params: types.Head.whole(lambda h: h @ params),
)


def _answers():
  """Every answer that ends with EOS or is cut at LENGTH tokens."""
  for answer in itertools.product(range(VOCAB), repeat=LENGTH):
    end = answer.index(EOS) + 1 if EOS in answer else LENGTH
    if not any(answer[end:]):
      yield answer[:end]


def _logp(table, prompt, answer):
  """log p of an answer, of f64[V, V] log-probs."""
  ids = [prompt[-1], *answer]
  return sum(table[a, b] for a, b in itertools.pairwise(ids))


def _kl_by_visits(policy, reference, first):
  """sum over t and tokens of P(y_t = token, not ended) KL(token)."""
  state_kl = (np.exp(policy) * (policy - reference)).sum(axis=-1)
  visits, total = np.eye(VOCAB)[first], 0.0
  for _ in range(LENGTH):
    total += visits @ state_kl
    visits = visits @ np.exp(policy)
    visits[EOS] = 0
  return total


@pytest.fixture(scope='module')
def found():
  """(p(answer), kl and log-ratio of it) of each prompt, and exact numbers."""
  rng = np.random.default_rng(0)
  logits = [1.5 * rng.normal(size=(VOCAB, VOCAB)) for _ in range(2)]
  policy, reference = map(bandit.log_softmax, logits)
  answers = list(_answers())
  sequence_kl = kl.make_sequence_kl(
    MARKOV, sharding.make_mesh(devices=1), max_new_tokens=LENGTH
  )
  rows = sequence_kl(
    *(jnp.asarray(z, jnp.float32) for z in logits),
    PROMPTS,
    [{'ids': list(a)} for a in answers] * len(PROMPTS),
  )
  out = []
  for i, prompt in enumerate(PROMPTS):
    own = rows[i * len(answers) : (i + 1) * len(answers)]
    logp, logq = (
      np.array([_logp(table, prompt, a) for a in answers])
      for table in (policy, reference)
    )
    sums, ratios = (np.array([r[k] for r in own]) for k in ('kl', 'log_ratio'))
    by_visits = _kl_by_visits(policy, reference, prompt[-1])
    out.append((np.exp(logp), logp - logq, sums, ratios, by_visits))
  return out


def test_both_have_the_mean_kl_of_whole_answers(found):
  for p, exact_ratio, sums, ratios, by_visits in found:
    assert p.sum() == pytest.approx(1)
    exact = (p * exact_ratio).sum()
    assert exact == pytest.approx(by_visits)
    assert exact > 0.5
    assert (p * sums).sum() == pytest.approx(exact, rel=1e-5)
    assert (p * ratios).sum() == pytest.approx(exact, rel=1e-5)
    np.testing.assert_allclose(ratios, exact_ratio, rtol=1e-4, atol=1e-5)


def test_the_tokens_kls_vary_less(found):
  for p, _, sums, ratios, exact in found:
    spread = [(p * (x - exact) ** 2).sum() for x in (sums, ratios)]
    assert 0 < spread[0] < 0.5 * spread[1]
    # Answer by answer they differ: only the means agree.
    assert np.abs(sums - ratios).max() > 1
