"""Collection of rollouts, and the minibatches that train on them.

collect(state) samples K completions of each of some prompts from the present
policy, asks the reward for their scores, adds what one scoring pass gives
(reference, values), and packs minibatches of one shape for some epochs. It is a
function of the state, the seed and the number of the collection alone, so a run
that resumes at a collection goes on as if it had not stopped.
"""

import collections
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from dpo_jax import models, registry, tokenizers, types
from dpo_jax.data import mixtures, order, plan, store
from dpo_jax.methods import judging, online_method
from dpo_jax.methods import rollouts as rollouts_lib
from dpo_jax.training import sharding

# A sampler's log-probabilities, as against those of a scoring pass.
MAX_LOGP_GAP = 0.05
# How often the same prompts are sampled, until enough have samples to train on.
ATTEMPTS = 3
# Streams of random numbers besides those that shuffle a mixture's parts.
MINIBATCHES, LABELS = 1 << 32, (1 << 32) + 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
  """How much is sampled at a time, and how often it is trained on.

  num_prompts: of a collection, each with `num_samples` completions of at most
  `max_new_tokens`. minibatches: that the prompts of a collection are divided
  into, anew in each of `epochs`. temperature, batch_size: of sampling; see
  `sampling.sample`.
  """

  num_prompts: int
  num_samples: int
  max_new_tokens: int
  minibatches: int = 1
  epochs: int = 1
  temperature: float = 1.0
  batch_size: int | None = None

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      default = value is None and field.name == 'batch_size'
      if field.name != 'temperature' and not default:
        registry.check_integer(f'rollouts.{field.name}', value, 1)
    if not self.temperature > 0:
      raise ValueError(
        f'rollouts.temperature is {self.temperature}; expected more than 0.'
      )
    if self.num_prompts % self.minibatches:
      raise ValueError(
        f'rollouts.num_prompts is {self.num_prompts}, which does not divide '
        f'into rollouts.minibatches={self.minibatches}.'
      )

  @property
  def steps(self) -> int:
    """Train steps of a collection."""
    return self.epochs * self.minibatches

  @property
  def samples(self) -> int:
    """Samples of a collection."""
    return self.num_prompts * self.num_samples


class Collected(NamedTuple):
  """Minibatches on the devices, and what is known of the rollouts.

  where: record of a batch -> the prompt's 'file:row'. seconds: of sampling,
  reward and scoring.
  """

  batches: Iterator[types.Batch]
  aux: Any
  metrics: dict[str, float]
  where: Callable[[int], str]
  seconds: dict[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collector:
  """What a collection needs besides the state; `collect` is its function.

  records: whose prompts are completed. rescore(params, batch) -> f32[R, N],
  log-probabilities of a scoring pass; None for a method that does not read the
  sampler's.
  """

  schedule: Schedule
  online: online_method.OnlineMethod
  config: models.ModelConfig
  compute: models.Compute
  tokenizer: tokenizers.Tokenizer
  records: store.TokenRecords
  judge: Callable[[rollouts_lib.Rollouts], judging.Judged]
  mesh: jax.sharding.Mesh
  rows: int
  seed: int
  run_samples: int
  rescore: Callable[[types.Params, types.Batch], types.Array] | None

  @functools.cached_property
  def prompts(self) -> order.ExampleStream:
    """The prompts as they are completed, each as an example of its record."""
    return prompt_stream(self.records, self.seed)

  @functools.cached_property
  def limits(self) -> plan.Limits:
    """The bounds of a minibatch."""
    s = self.schedule
    return plan.Limits(
      rows=self.rows,
      records=s.num_prompts // s.minibatches,
      completions=s.num_samples,
      max_prompt_length=int(self.records.prompt_lengths.max()),
      max_completion_length=s.max_new_tokens,
      examples=self.online.num_examples(s.num_samples),
    )


def prompt_stream(
  records: store.TokenRecords, seed: int
) -> order.ExampleStream:
  """The records, shuffled epoch after epoch, however many examples they have.

  Of a mixture, each part has its share.
  """
  n, more = len(records), {}
  if isinstance(records, mixtures.MixedRecords):
    parts = [p._replace(examples=p.records) for p in records.parts]
    more = {'parts': tuple(parts)}
  one_each = dataclasses.replace(
    records,
    examples_ExK=np.zeros((n, 1), np.int32),
    first_example=np.arange(n + 1),
    **more,
  )
  return order.ExampleStream(one_each, seed=seed)


def collect(
  c: Collector, state: types.TrainState, reference: types.Params, index: int
) -> Collected:
  """Rollouts of the state's policy, and the minibatches that train on them.

  index: of the collection, from 0. Where too few prompts have samples to train
  on, they are sampled again. Collective. ValueError where no
  minibatch can be made of the last attempt.
  """
  seconds = collections.Counter()
  for attempt in range(ATTEMPTS):
    found, records = _collect(c, state, reference, index, attempt)
    seconds.update(found.seconds)
    if len(records) >= c.schedule.minibatches:
      return found._replace(seconds=dict(seconds))
    logging.warning('Collection %d: %s', index, _too_few(records, c.schedule))
  raise ValueError(
    f'{_too_few(records, c.schedule)} These were {ATTEMPTS} attempts. Take '
    'more samples or prompts, or a reward that tells them apart.'
  )


def _collect(
  c: Collector, state, reference, index: int, attempt: int
) -> tuple[Collected, store.TokenRecords]:
  s, clock = c.schedule, [time.monotonic()]
  begin = index * s.num_prompts
  chosen = [i for i, _ in c.prompts.slice(begin, begin + s.num_prompts)]
  key = jax.random.fold_in(jax.random.key(c.seed), index)
  rollouts = rollouts_lib.draw(
    c.online.policy_of(state.params),
    c.config,
    [c.records.prompt(i).tolist() for i in chosen],
    [c.records.where(i) for i in chosen],
    c.tokenizer,
    key=jax.random.fold_in(key, attempt) if attempt else key,
    num_samples=s.num_samples,
    max_new_tokens=s.max_new_tokens,
    temperature=s.temperature,
    batch_size=s.batch_size,
    compute=c.compute,
  )
  clock.append(time.monotonic())
  judged = c.judge(rollouts)
  clock.append(time.monotonic())
  rollouts, scored, gap = _scored(c, state, reference, rollouts)
  stream = order.stream(c.seed, index, LABELS + attempt)
  prepared = c.online.prepare(
    rollouts,
    judged,
    scored,
    state.aux,
    online_method.Context(
      c.run_samples, np.random.Generator(stream), s.temperature == 1
    ),
  )
  records = rollouts_lib.to_records(
    rollouts, prepared.examples, prepared.extras_NxT
  )
  clock.append(time.monotonic())
  names = ('sampling', 'reward', 'scoring')
  found = Collected(
    batches=_minibatches(c, records, index),
    aux=_on_devices(c.mesh, prepared.aux),
    metrics=_metrics(rollouts, judged) | prepared.metrics | gap,
    where=records.where,
    seconds=dict(zip(names, np.diff(clock).tolist())),
  )
  return found, records


def _scored(c: Collector, state, reference, rollouts):
  """(rollouts, {name: f32[N, T]} of the scoring pass, metrics).

  In another dtype than float32 the sampler's log-probabilities differ from
  those of the train step: where the gap is beyond `MAX_LOGP_GAP` in the first
  minibatch, all are replaced.
  """
  count = rollouts.num_samples
  singles = [[(k,) for k in range(count)]] * len(rollouts.prompts)
  extras = {'place': rollouts_lib.places(rollouts)}
  records = rollouts_lib.to_records(rollouts, singles, extras)
  limits = dataclasses.replace(c.limits, examples=count)
  parts = np.array_split(np.arange(len(records)), c.schedule.minibatches)
  scored: dict[str, np.ndarray] = {}
  logps_NxT = np.array(rollouts.logps_NxT)
  check = c.rescore is not None and c.compute.dtype != 'float32'
  gap, rescored = 0.0, False
  for i, part in enumerate(parts if check or c.online.score else ()):
    batch = rollouts_lib.on_mesh(c.mesh, limits.pack(records, part))
    if check and (i == 0 or rescored):
      own = c.rescore(state.params, batch)
      rollouts_lib.scatter(own, batch, logps_NxT)
      if i == 0:
        gap = float(np.abs(logps_NxT - rollouts.logps_NxT).max())
        rescored = gap > MAX_LOGP_GAP
    if c.online.score:
      found = c.online.score(state.params, reference, batch)
      for name, values in found.items():
        into = scored.setdefault(name, np.zeros_like(rollouts.logps_NxT))
        rollouts_lib.scatter(values, batch, into)
  if rescored:
    rollouts = rollouts._replace(logps_NxT=logps_NxT)
  metrics = {'logp_gap': gap, 'rescored': float(rescored)} if check else {}
  return rollouts, scored, metrics


def _on_devices(mesh, aux):
  """A copy of NumPy arrays on every device; device arrays lie as they do."""
  return jax.tree.map(
    lambda x: x if isinstance(x, jax.Array) else sharding.replicate(mesh, x),
    aux,
  )


def _minibatches(c: Collector, records, index: int) -> Iterator[types.Batch]:
  s, limits = c.schedule, c.limits
  for epoch in range(s.epochs):
    turn = index * s.epochs + epoch
    shuffled = order.epoch_order(len(records), c.seed, turn, MINIBATCHES)
    for part in np.array_split(shuffled, s.minibatches):
      yield rollouts_lib.on_mesh(c.mesh, limits.pack(records, part))


def _too_few(records: store.TokenRecords, s: Schedule) -> str:
  return (
    f'Of {s.num_prompts} prompts, {len(records)} have samples to train on, '
    f'less than rollouts.minibatches={s.minibatches}: those of the others are '
    'equally good.'
  )


def _metrics(rollouts, judged: judging.Judged) -> dict[str, float]:
  scores_N, metrics = judged.scores_N, {}
  if scores_N is not None:
    metrics = {
      'reward': float(scores_N.mean()),
      'reward_std': float(scores_N.std()),
    }
  return metrics | {
    'length': float(rollouts.length_N.mean()),
    'ended': float(rollouts.ended_N.mean()),
  }


def log_sizes(c: Collector) -> None:
  """Logs the shape of the minibatches."""
  shape = c.limits.shape()
  logging.info(
    'Collections of %d prompts x %d samples; minibatches of %d rows x %d '
    'tokens, %d steps a collection.',
    c.schedule.num_prompts,
    c.schedule.num_samples,
    shape.rows,
    shape.length,
    c.schedule.steps,
  )
