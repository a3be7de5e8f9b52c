"""Direct Preference Optimization (arXiv:2305.18290) and its pairwise relatives.

Differences from the authors' code: a prompt is computed once for its
completions, which leaves every log-probability the same; log-probabilities are
float32 whatever the compute dtype, for the policy and the reference alike; the
reference is scored once, before training, unless it is asked for in the step.
"""

import functools
from collections.abc import Callable

import jax.numpy as jnp

from dpo_jax import registry, types
from dpo_jax.losses import logprobs, preference


def make(
  *,
  loss: str = 'dpo',
  reference: str = 'cached',
  logprob_chunk: int = 256,
  **loss_options,
) -> Callable[[types.Policy], types.Method]:
  """DPO on batches of pairs; what is minimised is the mean over them.

  loss: a key of `losses.PREFERENCE_LOSSES`; `loss_options` are its own.
  reference: 'cached' takes the reference's log-probabilities from the batch and
  holds nothing; 'in_step' holds the reference and scores it in every step.
  """
  loss_fn = registry.bind(
    registry.lookup(preference.PREFERENCE_LOSSES, loss, 'preference loss'),
    loss_options,
    f'loss {loss!r}',
    beside=registry.options_of(make),
  )
  registry.check_at_least('logprob_chunk', logprob_chunk, 1)
  with_reference = registry.lookup(REFERENCES, reference, 'reference')
  # Values that the loss refuses are refused here, before anything is loaded.
  zeros = jnp.zeros((1, 2))
  start = loss_fn(types.PairLogps(zeros, zeros, jnp.ones((1, 2), jnp.int32)))
  # Without a beta of its own, a loss has its rewards logged in nats.
  objective = functools.partial(
    _objective, loss_fn, loss_options.get('beta', 1.0)
  )
  at_start = {'loss': float(start[0]), 'rewards/margins': 0.0}

  def method(policy: types.Policy) -> types.Method:
    def token_logps(params, batch):
      hidden = policy.hidden(params, batch.tokens_RxL, batch.layout)
      logits_fn = functools.partial(policy.logits, params)
      return logprobs.token_logps(
        logits_fn, hidden, batch, chunk_size=logprob_chunk
      )

    def score(params, frozen, batch, key):
      del frozen, key
      return token_logps(params, batch)

    return types.Method(
      score=score,
      objective=objective,
      update=lambda aux, metrics: aux,
      init_aux=lambda: None,
      coupled=False,
      arity=2,
      at_start=at_start,
      **with_reference(token_logps),
    )

  return method


def _cached(token_logps):
  del token_logps

  def annotate(frozen, batch):
    del frozen
    if 'reference' not in batch.extras_RxN:
      raise ValueError(
        "The batch carries no 'reference' log-probabilities. Attach them to "
        "its records, or use reference='in_step'."
      )
    return batch

  return dict(
    freeze=lambda params: None, annotate=annotate, cached_reference=True
  )


def _in_step(token_logps):
  def annotate(frozen, batch):
    logps = token_logps(frozen['reference'], batch)
    return batch.replace(extras_RxN={**batch.extras_RxN, 'reference': logps})

  return dict(
    freeze=lambda params: {'reference': params},
    annotate=annotate,
    cached_reference=False,
  )


REFERENCES = {'cached': _cached, 'in_step': _in_step}


def _objective(loss_fn, beta, policy_RxN, batch, aux):
  """(sum of the pairs' losses, pairs, metrics)."""
  del aux

  def of_pairs(logps_RxN):
    return logprobs.example_slots(logprobs.slot_sums(logps_RxN, batch), batch)

  pairs = types.PairLogps(
    policy=of_pairs(policy_RxN),
    reference=of_pairs(batch.extras_RxN['reference']),
    length=logprobs.example_slots(batch.slot_length_RxS, batch),
  )
  weight_RxE = batch.example_weight_RxE
  count = jnp.sum(weight_RxE)

  def total(x_RxE):
    return jnp.where(weight_RxE > 0, x_RxE * weight_RxE, 0.0).sum()

  metrics = {
    name: (total(x), count, total(x * x))
    for name, x in pair_metrics(pairs, beta).items()
  }
  for i, name in enumerate(('chosen', 'rejected')):
    tokens = total(pairs.length[..., i])
    metrics[f'logps_per_token/{name}'] = (metrics[f'logps/{name}'][0], tokens)
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
