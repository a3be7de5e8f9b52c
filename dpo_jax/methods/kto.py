"""Alignment from single completions that are good or bad: KTO and BCO.

KTO (arXiv:2402.01306) compares a completion's log-ratio with an estimate of the
policy's KL divergence from its reference: the mean log-ratio of completions
that were written for other prompts. Here each example brings one of them as a
further branch of its own prompt (`kind='kto'`). The pairing is a derangement
that is drawn once, so the estimate does not depend on how batches are split.
The estimate is not differentiated.

BCO (arXiv:2404.04656) compares with the running mean of the rewards.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from dpo_jax import losses, registry, types
from dpo_jax.losses import unpaired
from dpo_jax.methods import completions, running_mean, scoring


def make(
  *,
  loss: str = 'kto',
  reference: str = 'cached',
  reference_options: Mapping[str, Any] | None = None,
  logprob_chunk: int = 256,
  **loss_options,
) -> Callable[[types.Policy], types.Method]:
  """KTO or BCO; what is minimised is the mean loss of a labelled completion.

  loss: a key of `losses.UNPAIRED_LOSSES`; `loss_options` are its own.
  reference, reference_options: as for DPO, but never 'none'.
  """
  registry.check_at_least('logprob_chunk', logprob_chunk, 1)
  fn = registry.lookup(losses.UNPAIRED_LOSSES, loss, 'unpaired loss')
  loss_fn = registry.bind(
    fn, loss_options, f'loss {loss!r}', beside=registry.options_of(make)
  )
  scoring.check_present(reference, loss)
  with_reference = scoring.bind_reference(reference, reference_options)
  properties = fn.properties
  shifted = 'shift' in registry.options_of(fn) and 'shift' not in loss_options
  weights = tuple(
    loss_options.get(name, 1.0)
    for name in ('desirable_weight', 'undesirable_weight')
  )
  at_start = _at_start(loss_fn, loss_options)
  beta = loss_options['beta']

  def objective(scores, batch, aux):
    data = unpaired_logps(scores['logps'], batch, properties.mismatched)
    metrics = unpaired_metrics(data, beta)
    shift = {'shift': running_mean.shift(aux, metrics)} if shifted else {}
    if properties.mismatched:
      baseline = beta * unpaired.kto_baseline(data)
    else:
      baseline = shift.get('shift', loss_options.get('shift'))
    metrics['rewards/accuracies'] = accuracy(data, beta, baseline)
    loss = completions.total(loss_fn(data, **shift), data.weight)
    return loss, data.weight.sum(), metrics

  def method(policy: types.Policy) -> types.Method:
    base = types.Method(
      score=scoring.make_score(policy, logprob_chunk=logprob_chunk),
      objective=objective,
      coupled=properties.coupled,
      arity=2 if properties.mismatched else 1,
      kinds=('kto',) if properties.mismatched else ('unpaired',),
      at_start=at_start,
      class_weights=weights,
      **with_reference,
    )
    return running_mean.attach(base) if shifted else base

  return method


def unpaired_logps(
  logps_RxN, batch: types.Batch, mismatched: bool
) -> types.UnpairedLogps:
  """The labelled completions of a batch; P = R * E.

  mismatched: whether the second completion of an example is mismatched, one
  that was written for another prompt.
  """

  def of(values_RxN):
    sums = completions.sums(values_RxN, batch)
    return sums.reshape(-1, batch.example_slots_RxExK.shape[-1])

  policy, reference = of(logps_RxN), of(batch.extras_RxN['reference'])
  own = batch.replace(example_slots_RxExK=batch.example_slots_RxExK[..., :1])
  labels = completions.of_slots(batch.slot_label_RxS, own).reshape(-1)
  weight = batch.example_weight_RxE.reshape(-1)
  return types.UnpairedLogps(
    policy=policy[:, 0],
    reference=reference[:, 0],
    # The label of a place without an example is arbitrary.
    label=jnp.where(weight > 0, labels, 0.0),
    length=completions.lengths(own).reshape(-1),
    weight=weight,
    mismatched=(
      jax.lax.stop_gradient(policy - reference)[:, 1] if mismatched else None
    ),
  )


def accuracy(data: types.UnpairedLogps, beta, baseline):
  """Metric: how many rewards lie above the baseline if desirable, else below.

  Strictly, so none where policy and reference agree.
  """
  above = beta * (data.policy - data.reference) - baseline
  right = jnp.where(data.label > 0, above > 0, above < 0)
  total = completions.total(right, data.weight)
  return total, data.weight.sum(), total


def _at_start(loss_fn, loss_options) -> dict[str, types.Array]:
  """Metrics that are known where policy and reference agree everywhere."""
  zeros = jnp.zeros(2)
  start = loss_fn(
    types.UnpairedLogps(
      policy=zeros,
      reference=zeros,
      label=jnp.array([1.0, 0.0]),
      length=jnp.ones(2, jnp.int32),
      mismatched=zeros,
    )
  )
  known = {'rewards/chosen': 0.0, 'rewards/rejected': 0.0}
  # With these the mean loss depends on how many of each class there are.
  unequal = {'desirable_weight', 'undesirable_weight', 'shift'}
  return known if unequal & loss_options.keys() else {'loss': start[0]} | known


def unpaired_metrics(data: types.UnpairedLogps, beta: float) -> types.Metrics:
  """Of 'chosen', the desirable completions, and 'rejected', the undesirable.

  'kl' is the mean log-ratio of mismatched completions: KTO's baseline, unless
  it is negative.
  """

  def of(x, weight):
    total = functools.partial(completions.total, weight_P=weight)
    return total(x), weight.sum(), total(x * x)

  rewards = beta * (data.policy - data.reference)
  metrics = {'desirable': of(data.label, data.weight)}
  for name, label in (('chosen', data.label), ('rejected', 1 - data.label)):
    weight = data.weight * label
    metrics[f'rewards/{name}'] = of(rewards, weight)
    metrics[f'logps/{name}'] = of(data.policy, weight)
    tokens = of(data.length, weight)[0]
    metrics[f'logps_per_token/{name}'] = metrics[f'logps/{name}'][0], tokens
  if data.mismatched is not None:
    metrics['kl'] = of(data.mismatched, data.weight)
  return metrics
