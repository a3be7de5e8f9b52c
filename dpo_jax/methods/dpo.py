"""Direct Preference Optimization (arXiv:2305.18290) and its pairwise relatives.

Differences from the authors' code: a prompt is computed once for its
completions, which leaves every log-probability the same; log-probabilities are
float32 whatever the compute dtype, for the policy and the reference alike.
"""

import functools
from collections.abc import Callable

import jax.numpy as jnp

from dpo_jax import registry, types
from dpo_jax.losses import logprobs, preference


def make(
  *, loss: str = 'dpo', logprob_chunk: int = 256, **loss_options
) -> Callable[[types.Policy], types.Method]:
  """DPO on batches of pairs; `frozen` is {'reference': a parameter tree}.

  `loss` is a key of `losses.PREFERENCE_LOSSES`, `loss_options` its own. What is
  minimised is the mean over the batch's pairs.
  """
  loss_fn = registry.bind(
    registry.lookup(preference.PREFERENCE_LOSSES, loss, 'preference loss'),
    loss_options,
    f'loss {loss!r}',
    beside=registry.options_of(make),
  )
  registry.check_at_least('logprob_chunk', logprob_chunk, 1)
  # Values that the loss refuses are refused here, before anything is loaded.
  zeros = jnp.zeros((1, 2))
  loss_fn(types.PairLogps(zeros, zeros, jnp.ones((1, 2), jnp.int32)))
  # Without a beta of its own, a loss has its rewards logged in nats.
  objective = functools.partial(
    _objective, loss_fn, loss_options.get('beta', 1.0)
  )
  return functools.partial(_method, objective, logprob_chunk)


def _method(
  objective, logprob_chunk: int, policy: types.Policy
) -> types.Method:
  def token_logps(params, batch):
    hidden = policy.hidden(params, batch.tokens_RxL, batch.layout)
    logits_fn = functools.partial(policy.logits, params)
    return logprobs.token_logps(
      logits_fn, hidden, batch, chunk_size=logprob_chunk
    )

  def annotate(frozen, batch):
    reference = token_logps(frozen['reference'], batch)
    return batch.replace(
      extras_RxN={**batch.extras_RxN, 'reference': reference}
    )

  def score(params, frozen, batch, key):
    del frozen, key
    return logprobs.slot_sums(token_logps(params, batch), batch)

  return types.Method(
    freeze=lambda params: {'reference': params},
    annotate=annotate,
    score=score,
    objective=objective,
    update=lambda aux, metrics: aux,
    init_aux=lambda: None,
    coupled=False,
    arity=2,
  )


def _objective(loss_fn, beta, policy_RxS, batch, aux):
  """(sum of the pairs' losses, pairs, metrics)."""
  del aux
  reference_RxS = logprobs.slot_sums(batch.extras_RxN['reference'], batch)
  pairs = types.PairLogps(
    policy=logprobs.example_slots(policy_RxS, batch),
    reference=logprobs.example_slots(reference_RxS, batch),
    length=logprobs.example_slots(batch.slot_length_RxS, batch),
  )
  weight_RxE = batch.example_weight_RxE
  count = jnp.sum(weight_RxE)

  def total(x_RxE):
    return jnp.where(weight_RxE > 0, x_RxE * weight_RxE, 0.0).sum()

  metrics = {k: (total(v), count) for k, v in pair_metrics(pairs, beta).items()}
  return total(loss_fn(pairs)), count, metrics


def pair_metrics(pairs: types.PairLogps, beta: float) -> dict[str, types.Array]:
  """Per pair: implicit rewards beta log(pi/pi_ref) (Eq. 5) and log-probs.

  `rewards/accuracies` counts strictly larger rewards: 0 where policy and
  reference agree, as in the authors' code.
  """
  rewards = beta * (pairs.policy - pairs.reference)
  chosen, rejected = rewards[..., 0], rewards[..., 1]
  return {
    'rewards/chosen': chosen,
    'rewards/rejected': rejected,
    'rewards/margins': chosen - rejected,
    'rewards/accuracies': (chosen > rejected).astype(jnp.float32),
    'logps/chosen': pairs.policy[..., 0],
    'logps/rejected': pairs.policy[..., 1],
  }
