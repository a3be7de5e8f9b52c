"""Supervised fine-tuning: maximum likelihood of completions given prompts."""

import functools
from collections.abc import Callable

import jax.numpy as jnp

from dpo_jax import registry, types
from dpo_jax.losses import logprobs

# What the negative log-likelihood is divided by. The authors' DPO code divides
# by sequences, which weights long completions more.
NORMALISATIONS = {
  'tokens': lambda batch: jnp.sum(batch.score_weight_RxN),
  'sequences': lambda batch: jnp.sum(batch.example_weight_RxE),
}


def make(
  *, normalise: str = 'tokens', logprob_chunk: int = 256
) -> Callable[[types.Policy], types.Method]:
  """SFT on batches whose examples are single completions; nothing is frozen.

  The loss is the negative log-likelihood in nats per token or per sequence.
  """
  denominator = registry.lookup(NORMALISATIONS, normalise, 'normalisation')
  registry.check_at_least('logprob_chunk', logprob_chunk, 1)
  return functools.partial(_method, denominator, logprob_chunk)


def _method(
  denominator, logprob_chunk: int, policy: types.Policy
) -> types.Method:
  def score(params, frozen, batch, key):
    del frozen, key
    hidden = policy.hidden(params, batch.tokens_RxL, batch.layout)
    logits_fn = functools.partial(policy.logits, params)
    return logprobs.token_logps(
      logits_fn, hidden, batch, chunk_size=logprob_chunk
    )

  def objective(logps_RxN, batch, aux):
    del aux
    total = jnp.sum(logps_RxN * batch.score_weight_RxN)
    metrics = {
      f'logps/{name}': (total, count(batch))
      for name, count in NORMALISATIONS.items()
    }
    return -total, denominator(batch), metrics

  return types.Method(
    freeze=lambda params: None,
    annotate=lambda frozen, batch: batch,
    score=score,
    objective=objective,
    update=lambda aux, metrics: aux,
    init_aux=lambda: None,
    coupled=False,
    arity=1,
    cached_reference=False,
    at_start={},
  )
