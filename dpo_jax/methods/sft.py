"""Supervised fine-tuning: maximum likelihood of completions given prompts."""

import functools
from collections.abc import Callable

import jax.numpy as jnp

from dpo_jax import registry, types
from dpo_jax.methods import scoring

# The divisor of the negative log-likelihood. The DPO authors' code divides by
# sequences, so that long completions weigh more.
NORMALISATIONS = {
  'tokens': lambda batch: jnp.sum(batch.score_weight_RxN),
  'sequences': lambda batch: jnp.sum(batch.example_weight_RxE),
}


def make(
  *, normalise: str = 'tokens', logprob_chunk: int = 256
) -> Callable[[types.Policy], types.Method]:
  """SFT on batches whose examples are single completions.

  The loss is the negative log-likelihood in nats per token or per sequence.
  """
  denominator = registry.lookup(NORMALISATIONS, normalise, 'normalisation')
  registry.check_at_least('logprob_chunk', logprob_chunk, 1)
  return functools.partial(_method, denominator, logprob_chunk)


def _method(
  denominator, logprob_chunk: int, policy: types.Policy
) -> types.Method:
  def objective(scores, batch, aux):
    del aux
    total = jnp.sum(scores['logps'] * batch.score_weight_RxN)
    metrics = {
      f'logps/{name}': (total, count(batch))
      for name, count in NORMALISATIONS.items()
    }
    return -total, denominator(batch), metrics

  return types.Method(
    score=scoring.make_score(policy, logprob_chunk=logprob_chunk),
    objective=objective,
    coupled=False,
    arity=1,
    kinds=('sft',),
    at_start={},
    **scoring.bind_reference('none', None),
  )
