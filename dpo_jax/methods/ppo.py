"""PPO from a reward, and RLOO and GRPO, which need no value model.

PPO (arXiv:1707.06347) for language models (arXiv:1909.08593, 2203.02155): the
policy samples; each token's reward is -kl_coefficient times an estimate of the
KL to the reference, and the last one's also the score of the whole completion;
a value model makes advantages of them by GAE; policy and values are then fitted
to these rollouts by clipped losses, in several epochs of minibatches.

  advantage='gae'             PPO, with a value model
  advantage='leave_one_out'   RLOO (arXiv:2402.14740): a completion's reward
                              less the mean of its prompt's other ones
  advantage='group_relative'  GRPO (arXiv:2402.03300): less the mean of the
                              prompt's, over their standard deviation; with
                              kl_in='loss' and kl_estimator='k3' as there

Differences from TRL's PPO (1.12) and from OpenAI's code:

  - Rollouts are sampled at temperature 1 without filters, and sampling gives
    their log-probabilities, which are not computed again.
  - The completions of a prompt share its computation, and a minibatch is one of
    prompts with all their completions.
  - Losses are means over the tokens of a minibatch, GRPO's too: the paper's are
    means over the tokens of a completion, then over completions.
  - Advantages are whitened once, over all tokens of a collection.
  - A completion that `max_new_tokens` cut ends there: no value follows it.
  - There is no dropout.
  - The horizon of the adaptive coefficient is a tenth of the run's samples, if
    it is not given: with 10,000 it would hardly move in a short run.
  - RLOO has PPO's ratio and clipping too, which do nothing in the first step.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax import registry, types
from dpo_jax.losses import inputs, logprobs
from dpo_jax.losses import policy_gradient as pg
from dpo_jax.methods import (
  advantages,
  judging,
  online_method,
  reward_scaling,
  scoring,
)


class Options(NamedTuple):
  """The options of `make`; `advantage` is built."""

  advantage: advantages.Advantage
  kl_coefficient: float
  target_kl: float | None
  horizon: float | None
  kl_estimator: str
  kl_in_loss: bool
  clip: float
  missing_eos_penalty: float
  scale_rewards: bool
  clip_rewards: float | None
  logprob_chunk: int


def make(
  *,
  advantage: str = 'gae',
  kl_coefficient: float = 0.05,
  target_kl: float | None = None,
  horizon: float | None = None,
  kl_estimator: str = 'k1',
  kl_in: str = 'reward',
  clip: float = 0.2,
  missing_eos_penalty: float = 0.0,
  scale_rewards: bool = False,
  clip_rewards: float | None = None,
  logprob_chunk: int = 256,
  **advantage_options,
) -> online_method.OnlineBuilder:
  """PPO, or RLOO or GRPO, see above.

  What is trained is {'policy', 'value'}, or {'policy'} where there is no value
  model. If `build` gets no value_policy, the value is a head on the policy's
  hidden states.

  advantage: a key of `advantages.ADVANTAGES`; `advantage_options` are its own.
  kl_coefficient: in units of reward a nat. target_kl: in nats a completion; the
  coefficient then adapts to it (Sec. 2.2, arXiv:1909.08593), with a horizon in
  samples. kl_estimator: a key of `policy_gradient.kl_estimates`. kl_in:
  'reward' of the tokens, or 'loss' of every step.
  clip: of the ratio. missing_eos_penalty: taken from the score of a completion
  without EOS. scale_rewards: scores less the mean of all so far, over their
  standard deviation. clip_rewards: the largest absolute value, after that.
  """
  make_advantage = registry.lookup(
    advantages.ADVANTAGES, advantage, 'advantage'
  )
  beside = registry.options_of(make)
  what = f'advantage {advantage!r}'
  built = registry.bind(make_advantage, advantage_options, what, beside)()
  registry.lookup(pg.kl_estimates, kl_estimator, 'kl_estimator')
  registry.lookup(dict.fromkeys(('reward', 'loss')), kl_in, 'kl_in')
  inputs.check_least_0(
    kl_coefficient=kl_coefficient, missing_eos_penalty=missing_eos_penalty
  )
  positive = dict(
    clip=clip, clip_rewards=clip_rewards, target_kl=target_kl, horizon=horizon
  )
  inputs.check_positive(**{k: v for k, v in positive.items() if v is not None})
  if target_kl is not None and not kl_coefficient:
    raise ValueError('target_kl scales kl_coefficient, which is 0 and stays 0.')
  if horizon is not None and target_kl is None:
    raise ValueError(
      f'horizon is {horizon}, but without target_kl nothing adapts.'
    )
  if kl_in == 'loss' and kl_estimator == 'k1':
    raise ValueError(
      "kl_in='loss' needs kl_estimator='k3': the gradient of k1 has mean 0."
    )
  registry.check_at_least('logprob_chunk', logprob_chunk, 1)
  options = Options(
    built,
    kl_coefficient,
    target_kl,
    horizon,
    kl_estimator,
    kl_in == 'loss',
    clip,
    missing_eos_penalty,
    scale_rewards,
    clip_rewards,
    logprob_chunk,
  )
  has_value = built.value_coefficient is not None
  return online_method.OnlineBuilder(
    functools.partial(_online_method, options),
    has_value=has_value,
    by_score=True,
    least_samples=1 if has_value else 2,
    on_policy=True,
    policy_key='policy',
  )


def _online_method(
  o: Options, policy: types.Policy, value_policy: types.Policy | None = None
) -> online_method.OnlineMethod:
  values = _make_values(o, policy, value_policy)
  logps = scoring.make_score(policy, logprob_chunk=o.logprob_chunk)

  @jax.jit
  def score(params, reference, batch):
    found = logps(reference, types.Frozen(), batch, None)
    out = {'reference': found['logps']}
    return out | ({'value': values(params, batch)} if values else {})

  return online_method.OnlineMethod(
    method=_method(o, policy, value_policy),
    policy_of=lambda params: params['policy'],
    score=score,
    prepare=functools.partial(
      _prepare, o, jax.jit(o.advantage.of, static_argnums=3)
    ),
    num_examples=lambda num_samples: num_samples,
  )


def _make_values(
  o: Options, policy: types.Policy, value_policy: types.Policy | None
) -> Callable[[types.Params, types.Batch], types.Array] | None:
  """fn(params, batch) -> f32[R, N], the value before each scored token."""
  if o.advantage.value_coefficient is None:
    return None
  own = value_policy or policy

  @own.over_rows
  def values_rows(batch, trunk, head):
    hidden = own.hidden(trunk, batch.tokens_RxL, batch.layout)
    return _values_of(own, head, hidden, batch)

  def values(params, batch):
    trunk = params['value' if value_policy else 'policy']
    return values_rows(batch, trunk, params['value'])

  return values


def _values_of(policy, head, hidden_RxLxD, batch: types.Batch):
  hidden_RxNxD = logprobs.take_rows(hidden_RxLxD, batch.score_index_RxN)
  values_RxN = policy.scalar(head, hidden_RxNxD)
  return jnp.where(batch.score_weight_RxN > 0, values_RxN, 0.0)


def _make_score(
  o: Options, policy: types.Policy, value_policy: types.Policy | None
) -> types.ScoreFn:
  """'logps', 'entropies' and, with a value model, 'values', f32[R, N]."""
  separate = value_policy and _make_values(o, policy, value_policy)
  shared = o.advantage.value_coefficient is not None and not value_policy

  @policy.over_rows
  def score_rows(batch, params, base, head):
    weights = policy.combine(params, base)
    hidden = policy.hidden(weights, batch.tokens_RxL, batch.layout)
    out = logprobs.token_scores(
      policy.head(weights),
      hidden,
      batch,
      chunk_size=o.logprob_chunk,
      entropies=True,
    )
    if head is not None:
      out['values'] = _values_of(policy, head, hidden, batch)
    return out

  def score(params, frozen, batch, key):
    del key
    head = params['value'] if shared else None
    out = score_rows(batch, params['policy'], frozen.base, head)
    return out | ({'values': separate(params, batch)} if separate else {})

  return score


def _method(
  o: Options, policy: types.Policy, value_policy: types.Policy | None
) -> types.Method:
  fields = scoring.bind_reference('none', None)
  fields['init_aux'] = lambda reference: {
    # Of the steps, and of the next collection.
    'kl_coefficient': jnp.float32(o.kl_coefficient),
    'next_kl_coefficient': jnp.float32(o.kl_coefficient),
    'scores': reward_scaling.nothing_seen(),
  }
  return types.Method(
    score=_make_score(o, policy, value_policy),
    objective=functools.partial(_objective, o),
    coupled=False,
    arity=1,
    at_start={},
    **fields,
  )


def _objective(o: Options, scores: types.Scores, batch: types.Batch, aux: Any):
  """(sum of the tokens' losses, number of tokens, metrics)."""
  extras, logps = batch.extras_RxN, scores['logps']
  real_RxN = batch.score_weight_RxN > 0
  count = real_RxN.sum().astype(jnp.float32)

  def total(values_RxN):
    return jnp.where(real_RxN, values_RxN, 0.0).sum()

  loss = policy_loss = total(
    pg.ppo_policy_loss(
      logps, extras['behaviour'], extras['advantage'], clip=o.clip
    )
  )
  log_ratio = jax.lax.stop_gradient(logps - extras['behaviour'])
  ratio = jnp.exp(log_ratio)
  metrics = {
    'policy/loss': (policy_loss, count),
    'policy/clip_fraction': (total(jnp.abs(ratio - 1) > o.clip), count),
    'policy/approximate_kl': (total(0.5 * log_ratio**2), count),
    'policy/entropy': (total(scores['entropies']), count),
    'policy/ratio': (total(ratio), count),
  }
  if 'values' in scores:
    value_loss = total(
      pg.ppo_value_loss(
        scores['values'],
        extras['value'],
        extras['return'],
        clip=o.advantage.value_clip,
      )
    )
    loss += o.advantage.value_coefficient * value_loss
    metrics['value/loss'] = (value_loss, count)
  if o.kl_in_loss:
    kl = total(pg.kl_estimates[o.kl_estimator](logps, extras['reference']))
    loss += aux['kl_coefficient'] * kl
  return loss, count, metrics


def _prepare(
  o: Options,
  advantages_of: Callable,
  rollouts,
  judged: judging.Judged,
  scored: dict[str, np.ndarray],
  aux: Any,
  context: online_method.Context,
) -> online_method.Prepared:
  mask_NxT, logps_NxT = rollouts.mask_NxT, rollouts.logps_NxT
  aux, num_samples = jax.device_get(aux), rollouts.num_samples
  coefficient = following = aux['next_kl_coefficient']
  scores_N = judged.scores_N - o.missing_eos_penalty * ~rollouts.ended_N
  seen = aux['scores']
  if o.scale_rewards:
    scores_N, seen = reward_scaling.scale(scores_N, seen)
  if o.clip_rewards is not None:
    scores_N = np.clip(scores_N, -o.clip_rewards, o.clip_rewards)
  kl_NxT = {
    name: jnp.where(mask_NxT, estimate(logps_NxT, scored['reference']), 0.0)
    for name, estimate in pg.kl_estimates.items()
  }
  rewards_NxT = pg.token_rewards(
    scores_N,
    kl_NxT[o.kl_estimator],
    mask_NxT,
    kl_coefficient=0.0 if o.kl_in_loss else coefficient,
  )
  advantages_NxT, returns = advantages_of(
    rewards_NxT, scored.get('value'), mask_NxT, num_samples
  )
  extras = {'behaviour': logps_NxT, 'advantage': advantages_NxT}
  kl = {name: float(x.sum(1).mean()) for name, x in kl_NxT.items()}
  metrics = {
    'kl': kl['k1'],
    'kl_k3': kl['k3'],
    'kl_coefficient': float(coefficient),
    'objective': float(np.mean(scores_N)) - float(coefficient) * kl['k1'],
  }
  if returns is not None:
    extras |= {'value': scored['value'], 'return': returns}
    explained = pg.explained_variance(scored['value'], returns, mask_NxT)
    metrics['explained_variance'] = float(explained)
  if o.kl_in_loss:
    extras['reference'] = scored['reference']
  if o.target_kl is not None:
    following = pg.adaptive_kl_coefficient(
      coefficient,
      kl['k1'],
      len(scores_N),
      target=o.target_kl,
      horizon=o.horizon or context.run_samples / 10,
    )
  return online_method.Prepared(
    examples=[[(k,) for k in range(num_samples)]] * len(rollouts.prompts),
    extras_NxT={k: np.asarray(x, np.float32) for k, x in extras.items()},
    aux={
      'kl_coefficient': np.float32(coefficient),
      'next_kl_coefficient': np.float32(following),
      'scores': seen,
    },
    metrics=metrics,
  )
