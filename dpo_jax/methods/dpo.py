"""Direct Preference Optimization (arXiv:2305.18290) and its pairwise relatives.

The objective is a loss of `losses.PREFERENCE_LOSSES` (DPO's is `dpo` in
losses/preference.py), combined with options that do not depend on the loss: how
the tokens of a completion are combined (`length`, `correction_weight`), which
divergence keeps the policy near its reference (`divergence`), how pairs are
weighted (`weighting`), where the reference is (`reference`), and which further
losses are added (`plus`).

Differences from the authors' code: the completions of a prompt share its
computation, which leaves every log-probability the same; log-probabilities are
float32 whatever the compute dtype, for policy and reference alike; by default
the reference is scored once, before training.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dpo_jax import registry, types
from dpo_jax.methods import completions, pair_options, running_mean, scoring


class PairObjective(NamedTuple):
  """What is minimised; wpo: whether pairs are weighted by WPO."""

  terms: tuple[pair_options.Term, ...]
  comparison: pair_options.Comparison
  wpo: bool
  beta: float


def make(
  *,
  loss: str = 'dpo',
  reference: str | None = None,
  reference_options: Mapping[str, Any] | None = None,
  divergence: str = 'reverse_kl',
  divergence_options: Mapping[str, Any] | None = None,
  length: str = 'sum',
  ld_alpha: float | None = None,
  correction_weight: float | None = None,
  weighting: str | None = None,
  plus: Mapping[str, Mapping[str, Any]] | None = None,
  logprob_chunk: int = 256,
  **loss_options,
) -> Callable[[types.Policy], types.Method]:
  """DPO on batches of pairs; what is minimised is the mean loss of a pair.

  loss: a key of `losses.PREFERENCE_LOSSES`; `loss_options` are its own.
  reference: 'cached' reads the reference's log-probabilities from the batch and
  holds no parameters; 'in_step' holds the reference and scores it in every
  step; 'drifting' moves it towards the policy (`reference_options`: every,
  mix); 'none' is for losses without one. None: 'cached', or 'none' for those.
  divergence: a key of `losses.DIVERGENCES`, with its `divergence_options`.
  length: 'sum', 'mean' (per token), or 'ld' (LD-DPO, arXiv:2409.06411, with
  `ld_alpha`).
  correction_weight: RLHF-V's gamma (arXiv:2312.00849, with length='mean'), the
  weight of corrected tokens; None where records mark none.
  weighting: None, or 'wpo' (arXiv:2406.11827).
  plus: losses that are added: name -> dict(weight=1.0, its own options). Those
  with a reference get the pairs that `loss` gets, likelihood terms get sums;
  bco takes its shift from the batch there. preferred_ft is RPO's term
  (normalise='tokens': arXiv:2404.19733, 'sums': arXiv:2405.16436).
  """
  registry.check_at_least('logprob_chunk', logprob_chunk, 1)
  terms = pair_options.make_terms(
    loss, loss_options, plus, beside=registry.options_of(make)
  )
  comparison = pair_options.make_comparison(
    terms,
    length=length,
    ld_alpha=ld_alpha,
    correction_weight=correction_weight,
    divergence=divergence,
    divergence_options=divergence_options,
  )
  pair_options.check_weighting(weighting, terms)
  kind = pair_options.reference_kind(reference, terms)
  return functools.partial(
    _method,
    PairObjective(
      terms,
      comparison,
      wpo=weighting == 'wpo',
      beta=loss_options.get('beta', 1.0),
    ),
    scoring.bind_reference(kind, reference_options),
    logprob_chunk,
  )


def _method(
  objective: PairObjective,
  reference_fields: Mapping[str, Any],
  logprob_chunk: int,
  policy: types.Policy,
) -> types.Method:
  terms = objective.terms
  targeted = any(term.targeted for term in terms)
  marked = objective.comparison.correction_weight is not None
  method = types.Method(
    score=scoring.make_score(
      policy, logprob_chunk=logprob_chunk, collisions=objective.wpo
    ),
    objective=functools.partial(_objective, objective),
    coupled=any(term.properties.coupled for term in terms),
    arity=3 if targeted else 2,
    kinds=('targeted',) if targeted else ('pairs',),
    extras=('corrected',) if marked else (),
    at_start=_at_start(objective),
    **reference_fields,
  )
  if any(term.running_shift for term in terms):
    return running_mean.attach(method)
  return method


def _objective(
  objective: PairObjective, scores: types.Scores, batch: types.Batch, aux: Any
):
  """(sum of the pairs' losses, number of pairs, metrics)."""
  terms, comparison = objective.terms, objective.comparison

  # log pi(y|x) and log pi_ref(y|x) of both answers, sums over their tokens.
  sums = pair_sums(scores['logps'], batch)
  # The same, as `length` and `correction_weight` combine tokens.
  compared = compared_pairs(comparison, sums, scores['logps'], batch)
  # The same with f'(pi / pi_ref) in the place of log-ratios.
  diverged = diverge(comparison.divergence, compared)

  def pairs_of(term: pair_options.Term) -> types.PairLogps:
    if not term.compares:
      return sums
    return diverged if term.properties.ratios else compared

  rewards = objective.beta * reward(terms[0], pairs_of(terms[0]))
  metrics = _mean_metrics(sums, rewards)

  # f32[P]. A term's loss is a function of `losses.PREFERENCE_LOSSES`, such as
  # `dpo` in losses/preference.py.
  loss = 0.0
  for term in terms:
    options = {}
    if term.running_shift:
      options = {'shift': running_mean.shift(aux, metrics)}
    loss += term.weight * term.loss(pairs_of(term), **options)

  total = functools.partial(completions.total, weight_P=sums.weight)
  count = jnp.sum(sums.weight)
  if objective.wpo:
    factor = wpo_weight(scores, batch).reshape(-1)
    loss, metrics['wpo_weight'] = loss * factor, (total(factor), count)
  return total(loss), count, metrics


def pair_sums(logps_RxN: types.Array, batch: types.Batch) -> types.PairLogps:
  """Sums of token log-probabilities; P = R * E.

  The third completion of an example, if there is one, is its target.
  """
  arity = batch.example_slots_RxExK.shape[-1]

  def of(values_RxN):
    return completions.sums(values_RxN, batch).reshape(-1, arity)

  policy, reference = of(logps_RxN), batch.extras_RxN.get('reference')
  lengths = completions.lengths(batch).reshape(-1, arity)
  return types.PairLogps(
    policy=policy[:, :2],
    reference=None if reference is None else of(reference)[:, :2],
    length=lengths[:, :2],
    weight=batch.example_weight_RxE.reshape(-1),
    target=policy[:, 2] if arity == 3 else None,
  )


def compared_pairs(
  comparison: pair_options.Comparison,
  sums: types.PairLogps,
  logps_RxN: types.Array,
  batch: types.Batch,
) -> types.PairLogps:
  """`sums` with tokens combined by the comparison's length and weights."""
  weight_RxN = None
  if comparison.correction_weight is not None:
    corrected_RxN = batch.extras_RxN.get('corrected')
    if corrected_RxN is None:
      raise ValueError(
        "The batch marks no 'corrected' tokens. Set corrections='diff' or "
        "'spans' in train_data and eval_data, or correction_weight=None."
      )
    weight_RxN = 1 + (comparison.correction_weight - 1) * corrected_RxN
  two = batch.replace(example_slots_RxExK=batch.example_slots_RxExK[..., :2])

  def of(values_RxN):
    return comparison.length(values_RxN, weight_RxN, two).reshape(-1, 2)

  reference = batch.extras_RxN.get('reference')
  return sums.replace(
    policy=of(logps_RxN),
    reference=None if reference is None else of(reference),
  )


def diverge(
  divergence: Callable[[types.Array], types.Array] | None,
  pairs: types.PairLogps,
) -> types.PairLogps:
  """Pairs whose log-ratios are the scores f'(pi / pi_ref) of a divergence."""
  if divergence is None or pairs.reference is None:
    return pairs
  score = divergence(pairs.policy - pairs.reference)
  return pairs.replace(policy=score, reference=jnp.zeros_like(score))


def reward(term: pair_options.Term, pairs: types.PairLogps) -> types.Array:
  """f32[P, 2]: what the loss compares, before any factor of its own.

  Log-ratios, or log-probabilities where there is no reference; per token for a
  loss that divides by lengths.
  """
  values = pairs.policy
  if term.properties.reference:
    values = values - pairs.reference
  if term.properties.sums:
    return values
  return values / jnp.maximum(pairs.length, 1)


def _mean_metrics(sums: types.PairLogps, rewards: types.Array) -> types.Metrics:
  """Means over pairs of `pair_metrics`, and log-probabilities per token."""
  total = functools.partial(completions.total, weight_P=sums.weight)
  count = jnp.sum(sums.weight)
  metrics = {
    name: (total(x), count, total(x * x))
    for name, x in pair_metrics(sums, rewards).items()
  }
  for i, name in enumerate(('chosen', 'rejected')):
    tokens = total(sums.length[:, i])
    metrics[f'logps_per_token/{name}'] = (metrics[f'logps/{name}'][0], tokens)
  return metrics


def pair_metrics(
  pairs: types.PairLogps, rewards: types.Array
) -> dict[str, types.Array]:
  """One number a pair, f32[P]; rewards: f32[P, 2].

  With DPO's loss they are Eq. 5's rewards without Z. `rewards/accuracies`
  counts strictly larger rewards: 0 where policy and reference agree, as in the
  authors' code.
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


def wpo_weight(scores: types.Scores, batch: types.Batch) -> types.Array:
  """WPO's weight of a pair, f32[R, E], not differentiated (arXiv:2406.11827).

  The product over both completions of
  exp(mean_t [log p(y_t) - log sum_v p(v)^2]), at most 1: the policy's
  probability of the tokens, relative to that of tokens that it samples itself.
  """
  aligned_RxN = jax.lax.stop_gradient(scores['logps'] - scores['collisions'])
  two = batch.replace(example_slots_RxExK=batch.example_slots_RxExK[..., :2])
  tokens = jnp.maximum(completions.lengths(two), 1)
  mean_RxEx2 = completions.sums(aligned_RxN, two) / tokens
  return jnp.exp(jnp.minimum(mean_RxEx2.sum(axis=-1), 0.0))


def _at_start(objective: PairObjective) -> dict[str, types.Array]:
  """Metrics that are known where policy and reference agree everywhere."""
  terms = objective.terms
  if not terms[0].properties.reference:
    return {}
  known = {}
  if not objective.wpo and all(t.properties.reference for t in terms):
    known['loss'] = sum(map(pair_options.start_loss, terms))
  return known | {'rewards/margins': jnp.zeros(())}
