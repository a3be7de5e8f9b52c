"""Online DPO: preferences between samples of the present policy.

S. Guo et al., Direct Language Model Alignment from Online AI Feedback,
arXiv:2402.04792: in every step the policy samples, a reward or a judge says
which sample is better, and a pairwise objective is minimised on these pairs.
No gradient goes through sampling. Every objective of dpo.py can be used, with a
reference that is fixed (`reference='cached'`), that follows the policy
('drifting') or with none.

With loss='ipo', labels='sampled' and two samples of each prompt it is the
online IPO of arXiv:2403.08635, self-play whose fixed point is the Nash policy
of the preference, regularised by the KL to the reference; the preference may be
intransitive (the section `preference` of a page).

Differences from arXiv:2402.04792 and TRL: samples of equal reward are no pair
(TRL takes the first as the better one); more than two samples of a prompt give
all their pairs, or the best and the worst; a collection may be trained on for
several steps, as `rollouts` says.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from dpo_jax import registry, types
from dpo_jax.methods import dpo, judging, online_method

# wins f32[K, K] of a prompt, and what draws labels -> pairs (better, worse).
Label = Callable[[np.ndarray, np.random.Generator], list[tuple[int, int]]]


def _likelier(wins_KxK: np.ndarray, rng) -> list[tuple[int, int]]:
  """Of each two samples, the one that wins more often than not is better."""
  del rng
  pairs = itertools.permutations(range(len(wins_KxK)), 2)
  return [(i, j) for i, j in pairs if wins_KxK[i, j] > 0.5]


def _sampled(wins_KxK: np.ndarray, rng) -> list[tuple[int, int]]:
  """One comparison of each two samples is drawn."""
  pairs = itertools.combinations(range(len(wins_KxK)), 2)
  return [(i, j) if rng.random() < wins_KxK[i, j] else (j, i) for i, j in pairs]


def _extremes(wins_KxK: np.ndarray, rng) -> list[tuple[int, int]]:
  """The sample that wins most, and the one that wins least."""
  del rng
  total_K = wins_KxK.sum(axis=1)
  best, worst = int(total_K.argmax()), int(total_K.argmin())
  return [(best, worst)] if total_K[best] > total_K[worst] else []


LABELS: dict[str, Label] = {
  'likelier': _likelier,
  'sampled': _sampled,
  'extremes': _extremes,
}


def make(
  *, labels: str = 'likelier', **dpo_options
) -> online_method.OnlineBuilder:
  """Online DPO; `dpo_options` are those of `dpo.make`.

  labels: which pairs two or more samples of a prompt give, by the probability
  that one wins over another (of rewards: 1 for the higher one): 'likelier', of
  all pairs the one that wins more often; 'sampled', a drawn comparison of each
  two; 'extremes', the best against the worst.
  """
  label = registry.lookup(LABELS, labels, 'labels')
  make_method = dpo.make(**dpo_options)
  reads = make_method(types.Policy(None, None))  # It is not called.
  if reads.arity != 2 or reads.extras:
    raise ValueError(
      f'The options {dpo_options} compare with a target, or weigh corrected '
      'tokens, which samples do not have: online DPO takes losses of pairs, '
      'and no correction_weight.'
    )
  return online_method.OnlineBuilder(
    functools.partial(_online_method, label, labels, make_method),
    has_value=False,
    by_score=False,
    least_samples=2,
    on_policy=False,
  )


def _online_method(
  label: Label,
  labels: str,
  make_method,
  policy: types.Policy,
  value_policy=None,
) -> online_method.OnlineMethod:
  del value_policy  # There is none.
  method = make_method(policy)

  @jax.jit
  def score(params, reference, batch):
    del params
    found = method.score(reference, types.Frozen(), batch, None)
    return {'reference': found['logps']}

  def num_examples(num_samples: int) -> int:
    if labels == 'extremes':
      return 1
    return num_samples * (num_samples - 1) // 2

  return online_method.OnlineMethod(
    method=method,
    policy_of=lambda params: params,
    score=score if method.reference == 'cached' else None,
    prepare=functools.partial(_prepare, label),
    num_examples=num_examples,
  )


def _prepare(
  label: Label,
  rollouts,
  judged: judging.Judged,
  scored: dict[str, np.ndarray],
  aux: Any,
  context: online_method.Context,
) -> online_method.Prepared:
  count = rollouts.num_samples
  wins_BxKxK = judged.wins(count)
  examples: Sequence = [label(wins, context.rng) for wins in wins_BxKxK]
  first, second = np.triu_indices(count, 1)
  metrics = {
    'pairs': sum(map(len, examples)),
    'untied': float(np.mean(wins_BxKxK[:, first, second] != 0.5)),
  }
  if 'reference' in scored and context.at_temperature_1:
    ratio = np.where(
      rollouts.mask_NxT, rollouts.logps_NxT - scored['reference'], 0.0
    )
    metrics['kl'] = float(ratio.sum(axis=1).mean())
  return online_method.Prepared(examples, dict(scored), aux, metrics)
