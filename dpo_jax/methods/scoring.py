"""How policy and reference are scored: what all likelihood methods share."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from dpo_jax import registry, types
from dpo_jax.losses import inputs, logprobs

Score = Callable[..., dict[str, types.Array]]


def make_score(
  policy: types.Policy, *, logprob_chunk: int, collisions: bool = False
) -> Score:
  """A Method's `score`; `collisions` adds what WPO's weights need."""

  @policy.over_rows
  def score_rows(batch, params):
    hidden = policy.hidden(params, batch.tokens_RxL, batch.layout)
    return logprobs.token_scores(
      policy.head(params),
      hidden,
      batch,
      chunk_size=logprob_chunk,
      collisions=collisions,
    )

  def score(params, frozen, batch, key):
    del frozen, key
    return score_rows(batch, params)

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
  """Those fields of a Method that `name` decides.

  `options` are what the kind of reference takes; see `REFERENCES`.
  """
  make = registry.lookup(REFERENCES, name, 'reference')
  options = dict(options or {})
  return registry.bind(make, options, f'reference {name!r}')()


def _cached():
  """Log-probabilities come with the batch; nothing is held."""

  def annotate(score, frozen, aux, batch):
    del score, frozen, aux
    if 'reference' not in batch.extras_RxN:
      raise ValueError(
        "The batch carries no 'reference' log-probabilities. Attach them to "
        "its records, or use reference='in_step'."
      )
    return batch

  return dict(_UNUSED, annotate=annotate, reference='cached')


def _in_step():
  """The reference is held and scored in every step."""

  def annotate(score, frozen, aux, batch):
    del aux
    return _with_reference(score(frozen['reference'], batch), batch)

  return dict(
    _UNUSED,
    freeze=lambda reference: {'reference': reference},
    annotate=annotate,
    reference='in_step',
  )


def _drifting(*, every: int = 512, mix: float = 0.6):
  """TR-DPO (arXiv:2404.09656): the reference follows the policy.

  After each `every` steps it becomes mix * policy + (1 - mix) * reference; a
  mix of 1 is the paper's hard update. It is part of the state.
  """
  registry.check_integer('every', every, 1)
  inputs.check_positive(mix=mix)
  inputs.check_most_1(mix=mix)

  def annotate(score, frozen, aux, batch):
    del frozen
    return _with_reference(score(aux['reference'], batch), batch)

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
    _UNUSED,
    annotate=annotate,
    update=update,
    init_aux=init_aux,
    reference='drifting',
  )


def _none():
  """For objectives that compare the policy with nothing."""
  return dict(_UNUSED)


_UNUSED = dict(
  freeze=lambda reference: None,
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
  """The batch with the 'logps' of these scores as those of the reference."""
  reference = jax.lax.stop_gradient(scores['logps'])
  return batch.replace(extras_RxN={**batch.extras_RxN, 'reference': reference})
