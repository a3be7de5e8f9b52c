"""A config page of an online method, with every name looked up and checked.

Such a page has a section `rollouts`. Sections that it shares with other
training pages are checked by settings.py.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from dpo_jax import data_sections, methods, registry, rewards, settings
from dpo_jax.methods import collection
from dpo_jax.models import parallel
from dpo_jax.training import launch, optimizers, run_log
from dpo_jax.training import step as steps_lib

Options = Mapping[str, Any]


class ValueSettings(NamedTuple):
  """The value model: a head on the policy (shared), or a model of its own.

  uri: what it starts from; a language model gets a head of zeros.
  """

  shared: bool
  uri: str | None


class OnlineSettings(NamedTuple):
  """The values of a page with rollouts; others are those of `TrainSettings`.

  reward, preference: what judges samples; one of them is None. value: None
  where there is no value model.
  """

  seed: int
  steps: int | None
  epochs: float | None
  log_every: int
  max_nonfinite: int
  model: settings.ModelSettings
  train_data: Options
  eval_data: Options
  method: Options
  rollouts: collection.Schedule
  reward: rewards.Reward | None
  preference: rewards.Preference | None
  value: ValueSettings | None
  schedule: Options
  optimizer: Options
  step: Options
  mesh: jax.sharding.Mesh
  offload_optimizer: bool
  checkpoints: settings.CheckpointSettings
  samples: settings.SampleSettings | None
  log: Options

  @property
  def rows(self) -> int:
    """Rows of a minibatch: one a group of devices and accumulation step."""
    return parallel.row_groups(self.mesh) * self.step.get(
      'accumulation_steps', 1
    )


def of(config: Options) -> OnlineSettings:
  """The settings of a page with rollouts; see `check`."""
  offline = {*registry.options_of(settings.check)} - {
    *registry.options_of(check)
  }
  for name in sorted(offline & {*config}):
    raise ValueError(
      f'{name} is of a page without rollouts. With rollouts, minibatches and '
      'their sizes come from the section `rollouts`, and the measures of a run '
      'from its samples.'
    )
  return registry.bind(check, config, 'the config')()


def check(
  *,
  seed: int,
  log_every: int,
  max_nonfinite: int,
  model: Options,
  method: Options,
  rollouts: Options,
  optimizer: Options,
  schedule: Options,
  step: Options,
  mesh: Options,
  checkpoints: Options,
  log: Options,
  steps: int | None = None,
  epochs: float | None = None,
  reward: str | Options | None = None,
  preference: str | Options | None = None,
  value: Options | None = None,
  data: Options | None = None,
  train_data: Options | None = None,
  eval_data: Options | None = None,
  samples: Options | None = None,
  distributed: Options | None = None,
) -> OnlineSettings:
  """Checks every section; ValueError for what is wrong with a page alone.

  steps or epochs (over the prompts) say how long the run is. rollouts: options
  of `collection.Schedule`. reward: of `rewards.build`; preference: of
  `rewards.build_preference`; one of them. value: of `value_settings`. Prompts
  are those of train_data; samples are drawn at those of eval_data.
  """
  steps, epochs = settings.duration(steps, epochs)
  registry.check_integers(
    ('seed', seed, 0),
    ('log_every', log_every, 1),
    ('max_nonfinite', max_nonfinite, 1),
  )
  for name, function, options in (
    ('distributed', launch.start, distributed or {}),
    ('step', steps_lib.make_train_step, step),
    ('log', run_log.make_log, log),
  ):
    registry.bind(function, options, name)
  train_data, eval_data = data_sections.train_and_held_out(
    data, train_data, eval_data
  )
  bind = registry.bind
  per_collection = bind(collection.Schedule, rollouts, 'rollouts')()
  _check_multiple('steps', steps, per_collection)
  devices, offload_optimizer = bind(settings.mesh_settings, mesh, 'mesh')()
  checkpoints = bind(settings.checkpoint_settings, checkpoints, 'checkpoints')(
    1
  )
  _check_multiple('checkpoints.every', checkpoints.every, per_collection)
  found = OnlineSettings(
    seed=seed,
    steps=steps,
    epochs=epochs,
    log_every=log_every,
    max_nonfinite=max_nonfinite,
    model=bind(settings.model_settings, model, 'model')(),
    train_data=train_data,
    eval_data=eval_data,
    method=method,
    rollouts=per_collection,
    **_judge(reward, preference),
    value=settings.optional(value_settings, value, 'value'),
    schedule=schedule,
    optimizer=optimizer,
    step=step,
    mesh=devices,
    offload_optimizer=offload_optimizer,
    checkpoints=checkpoints,
    samples=settings.optional(settings.sample_settings, samples, 'samples'),
    log=log,
  )
  _build_once(found)
  return found


def _judge(reward, preference) -> dict[str, Any]:
  """The fields of what judges samples, of which there is one."""
  if (reward is None) == (preference is None):
    raise ValueError(
      'A page with rollouts needs a reward, or a preference between two '
      f'samples; given: {"neither" if reward is None else "both"}.'
    )
  if reward is None:
    built = rewards.build_preference(preference)
    return dict(reward=None, preference=built)
  return dict(reward=rewards.build(reward), preference=None)


def value_settings(*, shared: bool = False, uri: str | None = None):
  """shared: a head on the policy's hidden states, and so without a uri."""
  if shared and uri is not None:
    raise ValueError(
      f'value.uri is {uri!r}, but value.shared=True: the value is a head on '
      'the policy.'
    )
  return ValueSettings(shared, uri)


def num_steps(s: OnlineSettings, num_prompts: int) -> int:
  """The steps of a run; its epochs count as whole collections."""
  if s.steps is not None:
    return s.steps
  collections = int(s.epochs * num_prompts) // s.rollouts.num_prompts
  if not collections:
    raise ValueError(
      f'{s.epochs:g} epochs of {num_prompts} prompts are less than one '
      f'collection of {s.rollouts.num_prompts} (rollouts.num_prompts).'
    )
  return collections * s.rollouts.steps


def _check_multiple(name: str, value, schedule: collection.Schedule) -> None:
  if value is not None and value % schedule.steps:
    raise ValueError(
      f'{name} is {value}, but a collection takes {schedule.steps} steps '
      '(rollouts.minibatches x rollouts.epochs): take a multiple.'
    )


def _check_rows(s: OnlineSettings) -> None:
  prompts = s.rollouts.num_prompts // s.rollouts.minibatches
  if prompts < s.rows:
    raise ValueError(
      f'A minibatch has {prompts} prompts (rollouts.num_prompts / minibatches) '
      f'and {s.rows} rows, one for each group of devices and accumulation '
      'step: some would be empty.'
    )


def _check_best(s: OnlineSettings) -> None:
  """ValueError for a metric that is not logged where checkpoints are."""
  best, every = s.checkpoints.best, s.samples and s.samples.every
  if best is None:
    return
  if not best.startswith('samples/') or every is None:
    raise ValueError(
      f'checkpoints.best is {best!r}; with rollouts, expected a metric of the '
      "section `samples`, such as 'samples/reward'. Those of a collection are "
      'of the policy before its steps, which the checkpoint does not hold.'
    )
  if s.checkpoints.every % every:
    raise ValueError(
      f'checkpoints.best is {best!r}, which is known every {every} steps '
      f'(samples.every), but checkpoints.every is {s.checkpoints.every}. Take '
      'a multiple.'
    )


def _build_once(s: OnlineSettings) -> None:
  """Builds what needs no data, for the errors of its options."""
  method, name = methods.build_online(s.method), s.method['name']
  if method.by_score and s.reward is None:
    raise ValueError(f'The method {name!r} needs a reward, not a preference.')
  if method.has_value != (s.value is not None):
    raise ValueError(
      f'The method {name!r} with these options has '
      f'{"a" if method.has_value else "no"} value model, and the page has '
      f'{"no" if s.value is None else "a"} section `value`.'
    )
  if s.rollouts.num_samples < method.least_samples:
    raise ValueError(
      f'rollouts.num_samples is {s.rollouts.num_samples}; the method {name!r} '
      f'with these options compares {method.least_samples} or more of a prompt.'
    )
  if method.on_policy and s.rollouts.temperature != 1:
    raise ValueError(
      f'rollouts.temperature is {s.rollouts.temperature}; the method {name!r} '
      'needs samples of the policy itself: 1.'
    )
  _check_rows(s)
  _check_best(s)
  optimizers.check(s.optimizer, s.schedule, s.steps)
  run_log.make_log(**s.log)
