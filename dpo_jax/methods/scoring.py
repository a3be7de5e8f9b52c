"""How policy and reference are scored: what all likelihood methods share."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from dpo_jax import registry, types
from dpo_jax.losses import inputs, logprobs


def make_score(
  policy: types.Policy, *, logprob_chunk: int, collisions: bool = False
) -> types.ScoreFn:
  """A Method's `score`: `logprobs.token_scores` of the policy.

  `collisions` adds what WPO's weights need.
  """

  @policy.over_rows
  def score_rows(batch, params, base):
    weights = policy.combine(params, base)
    hidden = policy.hidden(weights, batch.tokens_RxL, batch.layout)
    return logprobs.token_scores(
      policy.head(weights),
      hidden,
      batch,
      chunk_size=logprob_chunk,
      collisions=collisions,
    )

  def score(params, frozen, batch, key):
    del key
    return score_rows(batch, params, frozen.base)

  return score


def check_present(reference: str, loss: str) -> None:
  """ValueError if a loss that compares with a reference gets none."""
  if reference == 'none':
    raise ValueError(
      f"Loss {loss!r} compares with a reference, but reference is 'none'."
    )


def bind_reference(
  name: str, options: Mapping[str, Any] | None
) -> dict[str, Any]:
  """The fields of a Method that handle a reference of this kind.

  name: a key of `REFERENCES`, with its `options`.
  """
  make = registry.lookup(REFERENCES, name, 'reference')
  options = dict(options or {})
  return registry.bind(make, options, f'reference {name!r}')()


def _cached():
  """Log-probabilities come with the batch; no parameters are held."""

  def annotate(score, frozen, aux, batch):
    del score, frozen, aux
    if 'reference' not in batch.extras_RxN:
      raise ValueError(
        "The batch has no 'reference' log-probabilities. Attach them to its "
        "records, or use reference='in_step'."
      )
    return batch

  return dict(_NO_REFERENCE, annotate=annotate, reference='cached')


def _in_step():
  """The reference is held and scored in every step.

  It is a whole model: the base of an adapter is scored without the adapter.
  """

  def annotate(score, frozen, aux, batch):
    del aux
    held = frozen.base if frozen.reference is None else frozen.reference
    scores = score(held, frozen.replace(base=None), batch)
    return _with_reference(scores, batch)

  return dict(
    _NO_REFERENCE,
    freeze=lambda reference, base=None: types.Frozen(base, reference),
    annotate=annotate,
    reference='in_step',
  )


def _drifting(*, every: int = 512, mix: float = 0.6):
  """TR-DPO (arXiv:2404.09656): the reference follows the policy.

  After every `every` steps it becomes mix * policy + (1 - mix) * reference; a
  mix of 1 is the paper's hard update. It is part of the state, a tree like what
  is trained.
  """
  registry.check_integer('every', every, 1)
  inputs.check_positive(mix=mix)
  inputs.check_most_1(mix=mix)

  def annotate(score, frozen, aux, batch):
    return _with_reference(score(aux['reference'], frozen, batch), batch)

  def update(aux, params, metrics):
    del metrics
    steps = aux['steps'] + 1
    reference = jax.lax.cond(
      steps % every == 0,
      lambda old, new: jax.tree.map(
        lambda a, b: (1 - mix) * a + mix * b, old, new
      ),
      lambda old, new: old,
      aux['reference'],
      params,
    )
    return {'reference': reference, 'steps': steps}

  def init_aux(reference):
    return {
      'reference': jax.tree.map(jnp.copy, reference),
      'steps': jnp.zeros((), jnp.int32),
    }

  return dict(
    _NO_REFERENCE,
    annotate=annotate,
    update=update,
    init_aux=init_aux,
    reference='drifting',
  )


def _none():
  """For objectives without a reference."""
  return dict(_NO_REFERENCE)


_NO_REFERENCE = dict(
  freeze=lambda reference, base=None: types.Frozen(base),
  annotate=lambda score, frozen, aux, batch: batch,
  update=lambda aux, params, metrics: aux,
  init_aux=lambda reference: None,
  reference='none',
)

REFERENCES = {
  'cached': _cached,
  'in_step': _in_step,
  'drifting': _drifting,
  'none': _none,
}


def _with_reference(scores, batch: types.Batch) -> types.Batch:
  """The batch with the 'logps' of these scores as its reference's."""
  reference = jax.lax.stop_gradient(scores['logps'])
  return batch.replace(extras_RxN={**batch.extras_RxN, 'reference': reference})
