"""Reward models: a language model with a scalar head, from preferences.

Eq. 2 of arXiv:2305.18290: the reward of a completion is the scalar at its last
token, EOS where the completion ends with one, and the loss of a pair is
-log sigma(r_w - r_l). Rankings, ratings and labels have losses of their own, of
losses/reward.py. All pairs of a prompt share its computation, and each
completion is computed once for all pairs that it is in.

Differences from InstructGPT (arXiv:2203.02155): each pair weighs the same by
default, where it weighs those of a prompt by 1 / C(K, 2), which is
normalise='prompts'; rewards have a mean of 0 over samples of the reference,
where its are 0 for demonstrations. From TRL's RewardTrainer: EOS is a part of
the completion, and the product with the head is float32.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from dpo_jax import registry, types
from dpo_jax.losses import inputs, logprobs
from dpo_jax.losses import reward as reward_losses
from dpo_jax.methods import completions, scoring

NORMALISATIONS = ('examples', 'prompts')


class RewardObjective(NamedTuple):
  """What is minimised; `loss_fn` is of a loss with its options bound."""

  loss_fn: Callable[..., types.Array]
  arity: int
  centre_coefficient: float
  by_prompt: bool


def make(
  *,
  loss: str = 'bradley_terry',
  num_answers: int | None = None,
  centre_coefficient: float = 0.0,
  normalise: str = 'examples',
  **loss_options,
) -> Callable[[types.Policy], types.Method]:
  """A reward model; what is minimised is the mean loss of an example.

  loss: a key of `losses.REWARD_LOSSES`; `loss_options` are its own.
  num_answers: K, the number of completions of every ranking.
  centre_coefficient: of the squared sum of an example's rewards, which is added
  to the loss of pairs and rankings.
  normalise: 'examples', or 'prompts' for pairs: those of a prompt in a batch
  together weigh as much as those of another.
  """
  loss_fn = registry.bind(
    registry.lookup(reward_losses.LOSSES, loss, 'reward loss'),
    loss_options,
    f'loss {loss!r}',
    beside=registry.options_of(make),
  )
  form = FORMS[loss]
  arity = form.arity
  if arity is None:
    registry.check_integer('num_answers', num_answers, 2)
    arity = num_answers
  elif num_answers is not None:
    raise ValueError(
      f'num_answers is {num_answers}, the K of rankings, which loss {loss!r} '
      "does not take; it goes with 'plackett_luce'."
    )
  inputs.check_least_0(centre_coefficient=centre_coefficient)
  if centre_coefficient and arity == 1:
    raise ValueError(
      f'centre_coefficient is {centre_coefficient}, but loss {loss!r} decides '
      'the mean reward; it goes with losses of pairs and rankings.'
    )
  registry.lookup(dict.fromkeys(NORMALISATIONS), normalise, 'normalisation')
  by_prompt = normalise == 'prompts'
  if by_prompt and form.kinds != ('pairs',):
    raise ValueError(
      f"normalise='prompts' is of pairs, which loss {loss!r} does not take."
    )
  objective = RewardObjective(loss_fn, arity, centre_coefficient, by_prompt)
  return functools.partial(_method, objective, form)


def _method(
  objective: RewardObjective, form: 'Form', policy: types.Policy
) -> types.Method:
  return types.Method(
    score=make_score(policy),
    objective=functools.partial(form.objective, objective),
    coupled=objective.by_prompt,
    arity=objective.arity,
    kinds=form.kinds,
    at_start={},
    **scoring.bind_reference('none', None),
  )


def make_score(policy: types.Policy) -> types.ScoreFn:
  """A Method's `score`: {'rewards': f32[R, S]}, at each slot's last token."""

  @policy.over_rows
  def score_rows(batch, params, base):
    weights = policy.combine(params, base)
    hidden = policy.hidden(weights, batch.tokens_RxL, batch.layout)
    last_RxSxD = logprobs.take_rows(hidden, batch.slot_last_RxS)
    return {'rewards': policy.scalar(weights, last_RxSxD)}

  def score(params, frozen, batch, key):
    del key
    return score_rows(batch, params, frozen.base)

  return score


def compare(
  objective: RewardObjective, scores: types.Scores, batch: types.Batch, aux
):
  """(sum of the losses, number of examples or prompts, metrics) of pairs or
  rankings, the best completion first."""
  del aux
  rewards_PxK = _rewards(objective, scores, batch)
  loss = objective.loss_fn(rewards_PxK)
  if objective.centre_coefficient:
    centring = reward_losses.centring(rewards_PxK)
    loss = loss + objective.centre_coefficient * centring
  weight = batch.example_weight_RxE.reshape(-1)
  metrics = _means(comparison_metrics(rewards_PxK), weight)
  if objective.by_prompt:
    weight = prompt_weight(batch)
  return completions.total(loss, weight), weight.sum(), metrics


def comparison_metrics(rewards_PxK: types.Array) -> dict[str, types.Array]:
  """One number an example, f32[P]; 'chosen' is the best completion, 'rejected'
  the worst.

  `rewards/accuracies` is the share of its pairs whose rewards are strictly in
  order, `rewards/ties` of those with equal rewards.
  """
  chosen, rejected = rewards_PxK[:, 0], rewards_PxK[:, -1]
  better, worse = jnp.triu_indices(rewards_PxK.shape[1], 1)
  better, worse = rewards_PxK[:, better], rewards_PxK[:, worse]
  return {
    'rewards/chosen': chosen,
    'rewards/rejected': rejected,
    'rewards/margins': chosen - rejected,
    'rewards/accuracies': jnp.mean(jnp.float32(better > worse), axis=1),
    'rewards/ties': jnp.mean(jnp.float32(better == worse), axis=1),
    'rewards/mean': jnp.mean(rewards_PxK, axis=1),
  }


def prompt_weight(batch: types.Batch) -> types.Array:
  """f32[P]: 1 / the number of the prompt's pairs in the batch, 0 for padding.

  It is InstructGPT's 1 / C(K, 2) where all pairs of K completions are there.
  """
  weight = batch.example_weight_RxE.reshape(-1)
  record = batch.example_record_RxE.reshape(-1)
  same_PxP = record[:, None] == record[None, :]
  pairs = jnp.sum(same_PxP * weight[None, :], axis=1)
  return weight / jnp.maximum(pairs, 1.0)


def regress(
  objective: RewardObjective, scores: types.Scores, batch: types.Batch, aux
):
  """(sum of the losses, number of completions, metrics) of ratings."""
  del aux
  rewards = _rewards(objective, scores, batch)[:, 0]
  ratings, weight = _labels(batch), batch.example_weight_RxE.reshape(-1)
  metrics = {'rewards/mean': rewards, 'ratings/mean': ratings}
  metrics['rewards/error'] = jnp.abs(rewards - ratings)
  total = completions.total(objective.loss_fn(rewards, ratings), weight)
  return total, weight.sum(), _means(metrics, weight)


def classify(
  objective: RewardObjective, scores: types.Scores, batch: types.Batch, aux
):
  """(sum of the losses, number of completions, metrics) of labels.

  `rewards/accuracies` counts rewards above 0 of desirable completions and below
  0 of undesirable ones, which are 'chosen' and 'rejected'. `rewards/margins` is
  the log-odds of the label.
  """
  del aux
  rewards = _rewards(objective, scores, batch)[:, 0]
  labels, weight = _labels(batch), batch.example_weight_RxE.reshape(-1)
  margins = jnp.where(labels > 0, rewards, -rewards)
  metrics = _means(
    {
      'desirable': labels,
      'rewards/margins': margins,
      'rewards/accuracies': jnp.float32(margins > 0),
      'rewards/ties': jnp.float32(margins == 0),
      'rewards/mean': rewards,
    },
    weight,
  )
  for name, each in (('chosen', labels), ('rejected', 1 - labels)):
    metrics |= _means({f'rewards/{name}': rewards}, weight * each)
  total = completions.total(objective.loss_fn(rewards, labels), weight)
  return total, weight.sum(), metrics


def _rewards(objective, scores, batch: types.Batch) -> types.Array:
  """f32[P, K]: rewards of each example's completions; P = R * E."""
  rewards_RxExK = completions.of_slots(scores['rewards'], batch)
  return rewards_RxExK.reshape(-1, objective.arity)


def _labels(batch: types.Batch) -> types.Array:
  """f32[P]: labels or ratings of single completions, 0 for padding."""
  labels = completions.of_slots(batch.slot_label_RxS, batch).reshape(-1)
  return jnp.where(batch.example_weight_RxE.reshape(-1) > 0, labels, 0.0)


def _means(values: dict[str, types.Array], weight_P) -> types.Metrics:
  total = functools.partial(completions.total, weight_P=weight_P)
  count = weight_P.sum()
  return {name: (total(x), count, total(x * x)) for name, x in values.items()}


class Form(NamedTuple):
  """What a loss compares: `arity` None stands for num_answers."""

  arity: int | None
  kinds: tuple[str, ...]
  objective: Callable


FORMS = {
  'bradley_terry': Form(2, ('pairs',), compare),
  'plackett_luce': Form(None, ('ranking', 'pairs'), compare),
  'regression': Form(1, ('rated',), regress),
  'binary': Form(1, ('unpaired',), classify),
}
