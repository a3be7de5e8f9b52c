"""DPO over rankings of K completions (App. A.3 of arXiv:2305.18290)."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

from dpo_jax import losses, registry, types
from dpo_jax.methods import completions, scoring


def make(
  *,
  num_answers: int,
  loss: str = 'plackett_luce',
  reference: str = 'cached',
  reference_options: Mapping[str, Any] | None = None,
  logprob_chunk: int = 256,
  **loss_options,
) -> Callable[[types.Policy], types.Method]:
  """DPO on batches of rankings; what is minimised is the mean loss of one.

  num_answers: K, the number of completions of every ranking.
  loss: a key of `losses.RANKING_LOSSES`; `loss_options` are its own.
  reference, reference_options: as for pairs, but never 'none'.
  """
  registry.check_integer('num_answers', num_answers, 2)
  registry.check_at_least('logprob_chunk', logprob_chunk, 1)
  loss_fn = registry.bind(
    registry.lookup(losses.RANKING_LOSSES, loss, 'ranking loss'),
    loss_options,
    f'loss {loss!r}',
    beside=registry.options_of(make),
  )
  scoring.check_present(reference, loss)
  with_reference = scoring.bind_reference(reference, reference_options)
  zeros = jnp.zeros((1, num_answers))
  start = loss_fn(
    types.RankedLogps(zeros, zeros, jnp.ones(zeros.shape, jnp.int32))
  )
  beta = loss_options['beta']

  def objective(scores, batch, aux):
    del aux
    return _objective(loss_fn, beta, scores, batch)

  def method(policy: types.Policy) -> types.Method:
    return types.Method(
      score=scoring.make_score(policy, logprob_chunk=logprob_chunk),
      objective=objective,
      coupled=False,
      arity=num_answers,
      kinds=('ranking', 'pairs'),
      at_start={'loss': start[0], 'rewards/margins': 0.0},
      **with_reference,
    )

  return method


def _objective(loss_fn, beta, scores, batch: types.Batch):
  """(sum of the rankings' losses, rankings, metrics)."""
  ranks = batch.example_slots_RxExK.shape[-1]

  def of(values_RxN):
    return completions.sums(values_RxN, batch).reshape(-1, ranks)

  ranked = types.RankedLogps(
    policy=of(scores['logps']),
    reference=of(batch.extras_RxN['reference']),
    length=completions.lengths(batch).reshape(-1, ranks),
  )
  weight = batch.example_weight_RxE.reshape(-1)
  count = weight.sum()
  total = functools.partial(completions.total, weight_P=weight)

  metrics = {
    name: (total(x), count, total(x * x))
    for name, x in ranking_metrics(ranked, beta).items()
  }
  return total(loss_fn(ranked)), count, metrics


def ranking_metrics(
  ranked: types.RankedLogps, beta: float
) -> dict[str, types.Array]:
  """One number a ranking, f32[P]; 'chosen' is the best completion, 'rejected'
  the worst.

  `rewards/accuracies` is the share of its pairs whose rewards are strictly in
  order; `rewards/top_1` is 1 where the best completion has the largest reward.
  """
  rewards = beta * (ranked.policy - ranked.reference)
  ranks = rewards.shape[1]
  better, worse = jnp.triu_indices(ranks, 1)
  ordered = rewards[:, better] > rewards[:, worse]
  first = jnp.all(rewards[:, :1] > rewards[:, 1:], axis=1)
  return {
    'rewards/chosen': rewards[:, 0],
    'rewards/rejected': rewards[:, -1],
    'rewards/margins': rewards[:, 0] - rewards[:, -1],
    'rewards/accuracies': jnp.mean(ordered.astype(jnp.float32), axis=1),
    'rewards/top_1': first.astype(jnp.float32),
    'logps/chosen': ranked.policy[:, 0],
    'logps/rejected': ranked.policy[:, -1],
  }
