"""Direct Preference Optimization (arXiv:2305.18290) and its pairwise relatives.

An objective is a loss of `losses.PREFERENCE_LOSSES` and what is independent of
it: how a completion's tokens are summed (`length`, `segment_weight`), which
divergence keeps the policy near its reference (`divergence`), how pairs are
weighted (`weighting`), where the reference is (`reference`), and further losses
that are added (`plus`).

Differences from the authors' code: a prompt is computed once for its
completions, which leaves every log-probability the same; log-probabilities are
float32 whatever the compute dtype, for the policy and the reference alike; the
reference is scored once, before training, unless it is asked for in the step.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dpo_jax import registry, types
from dpo_jax.methods import completions, pairwise, running_mean, scoring


class Objective(NamedTuple):
  """What a pair's loss is. wpo: pairs are weighted by WPO."""

  terms: tuple[pairwise.Term, ...]
  view: pairwise.View
  wpo: bool
  beta: Any

  @property
  def shifted(self) -> bool:
    """Whether a loss takes the running mean of the rewards."""
    return any(term.shifted for term in self.terms)


def make(
  *,
  loss: str = 'dpo',
  reference: str | None = None,
  reference_options: Mapping[str, Any] | None = None,
  divergence: str = 'reverse_kl',
  divergence_options: Mapping[str, Any] | None = None,
  length: str = 'sum',
  ld_alpha: float | None = None,
  segment_weight: float | None = None,
  weighting: str | None = None,
  plus: Mapping[str, Mapping[str, Any]] | None = None,
  logprob_chunk: int = 256,
  **loss_options,
) -> Callable[[types.Policy], types.Method]:
  """DPO on batches of pairs; what is minimised is the mean over them.

  loss: a key of `losses.PREFERENCE_LOSSES`; `loss_options` are its own.
  reference: 'cached' takes the reference's log-probabilities from the batch and
  holds nothing; 'in_step' holds the reference and scores it in every step;
  'drifting' moves it towards the policy (`reference_options`: every, mix);
  'none' is for losses without one. None: 'cached', or 'none' for those.
  divergence: a key of `losses.DIVERGENCES`, which take `divergence_options`.
  length: 'sum', 'mean' (per token), or 'ld' (LD-DPO, arXiv:2409.06411, needs
  its `ld_alpha`).
  segment_weight: RLHF-V's gamma (arXiv:2312.00849, with length='mean'), the
  weight of tokens in corrected segments; None for no segments.
  weighting: None, or 'wpo' (arXiv:2406.11827).
  plus: losses that are added: name -> dict(weight=1.0, its own options). Those
  that compare with a reference see the pairs as `loss` does, likelihood terms
  sums; bco takes its shift from the batch there. preferred_ft is RPO's term
  (normalise='tokens': arXiv:2404.19733, 'sums': arXiv:2405.16436).
  """
  registry.check_at_least('logprob_chunk', logprob_chunk, 1)
  if weighting is not None:
    registry.lookup({'wpo': 0}, weighting, 'weighting')
  beside = registry.options_of(make)
  main = pairwise.make_term(loss, loss_options, main=True, beside=beside)
  terms = (main, *_added(plus or {}))
  objective = Objective(
    terms=terms,
    view=pairwise.make_view(
      terms,
      length=length,
      ld_alpha=ld_alpha,
      segment_weight=segment_weight,
      divergence=divergence,
      divergence_options=divergence_options or {},
    ),
    wpo=weighting == 'wpo',
    beta=loss_options.get('beta', 1.0),
  )
  with_reference = scoring.bind_reference(
    _reference_of(objective, reference), reference_options
  )
  coupled = [term.name for term in terms if term.traits.coupled]
  if objective.wpo and coupled:
    raise ValueError(
      f"weighting='wpo' weights pairs one by one; loss {coupled[0]!r} couples "
      'them.'
    )
  targeted = any(term.targeted for term in terms)
  if targeted and (length != 'sum' or segment_weight is not None):
    raise ValueError(
      "target='answer' compares sums of log-probabilities with length='sum' "
      f'and no segment_weight; given: length={length!r}, '
      f'segment_weight={segment_weight}.'
    )

  def method(policy: types.Policy) -> types.Method:
    base = types.Method(
      score=scoring.make_score(
        policy, logprob_chunk=logprob_chunk, collisions=objective.wpo
      ),
      objective=lambda scores, batch, aux: _objective(
        objective, scores, batch, aux
      ),
      coupled=bool(coupled),
      arity=3 if targeted else 2,
      kinds=('targeted',) if targeted else ('pairs',),
      extras=() if segment_weight is None else ('corrected',),
      at_start=_at_start(objective),
      **with_reference,
    )
    return running_mean.beside(base) if objective.shifted else base

  return method


def _added(plus) -> list[pairwise.Term]:
  if not isinstance(plus, Mapping):
    raise ValueError(
      f'plus is {plus!r}; expected name -> dict(weight=1.0, its options).'
    )
  out = []
  for name, options in plus.items():
    if not isinstance(options, Mapping):
      raise ValueError(
        f'plus.{name} is {options!r}; expected dict(weight=1.0, its options).'
      )
    options = {'weight': 1.0, **options}
    weight = options.pop('weight')
    out.append(
      pairwise.make_term(
        name, options, weight=weight, main=False, beside=('weight',)
      )
    )
  return out


def _reference_of(objective: Objective, reference: str | None) -> str:
  """The kind of reference; ValueError for one too many or too few."""
  readers = [t.name for t in objective.terms if t.traits.reference]
  if reference is None:
    return 'cached' if readers else 'none'
  registry.lookup(scoring.REFERENCES, reference, 'reference')
  if readers:
    scoring.check_present(reference, readers[0])
  if not readers and reference != 'none':
    raise ValueError(
      f'Loss {objective.terms[0].name!r} has no reference, but reference is '
      f"{reference!r}; expected 'none', or nothing at all."
    )
  return reference


def _at_start(objective: Objective) -> dict[str, types.Array]:
  """What holds where policy and reference agree on every completion."""
  if not objective.terms[0].traits.reference:
    return {}
  known = {}
  if not objective.wpo and all(t.traits.reference for t in objective.terms):
    known['loss'] = sum(map(pairwise.start_loss, objective.terms))
  return known | {'rewards/margins': jnp.zeros(())}


def _objective(objective: Objective, scores, batch, aux):
  """(sum of the pairs' losses, pairs, metrics)."""
  logps_RxN, view = scores['logps'], objective.view
  plain = pairwise.plain_pairs(logps_RxN, batch)
  shown = pairwise.show(view, plain, logps_RxN, batch)
  rewards = objective.beta * pairwise.reward(objective.terms[0], view, shown)
  weight, count = plain.weight, jnp.sum(plain.weight)
  total = functools.partial(completions.total, weight_P=weight)

  metrics = {
    name: (total(x), count, total(x * x))
    for name, x in pair_metrics(plain, rewards).items()
  }
  for i, name in enumerate(('chosen', 'rejected')):
    tokens = total(plain.length[:, i])
    metrics[f'logps_per_token/{name}'] = (metrics[f'logps/{name}'][0], tokens)

  shift = running_mean.shift(aux, metrics) if objective.shifted else None
  loss = pairwise.loss(objective.terms, view, plain, shown, shift)
  if objective.wpo:
    factor = wpo_weight(scores, batch).reshape(-1)
    loss, metrics['wpo_weight'] = loss * factor, (total(factor), count)
  return total(loss), count, metrics


def pair_metrics(
  pairs: types.PairLogps, rewards: types.Array
) -> dict[str, types.Array]:
  """Of each pair, f32[P]; rewards: f32[P, 2], by default Eq. 5's without Z.

  `rewards/accuracies` counts strictly larger rewards: 0 where policy and
  reference agree, as in the authors' code.
  """
  chosen, rejected = rewards[:, 0], rewards[:, 1]
  return {
    'rewards/chosen': chosen,
    'rewards/rejected': rejected,
    'rewards/margins': chosen - rejected,
    'rewards/accuracies': (chosen > rejected).astype(jnp.float32),
    'logps/chosen': pairs.policy[:, 0],
    'logps/rejected': pairs.policy[:, 1],
  }


def wpo_weight(scores, batch: types.Batch) -> types.Array:
  """WPO's weight of a pair, f32[R, E], not differentiated (arXiv:2406.11827).

  The product over both completions, at most 1, of
  exp(mean_t [log p(y_t) - log sum_v p(v)^2]): how likely the policy is to write
  them, set against what it writes by itself.
  """
  aligned_RxN = jax.lax.stop_gradient(scores['logps'] - scores['collisions'])
  two = batch.replace(example_slots_RxExK=batch.example_slots_RxExK[..., :2])
  tokens = jnp.maximum(completions.lengths(two), 1)
  mean_RxEx2 = completions.sums(aligned_RxN, two) / tokens
  return jnp.exp(jnp.minimum(mean_RxEx2.sum(axis=-1), 0.0))
