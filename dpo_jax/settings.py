"""A config page with every name looked up and every option checked.

What is wrong with a page alone is found here, before anything is loaded.
Sections whose options depend on a name (method, optimizer, schedule) or are
those of one function (step, batches, log) stay mappings of options: checked
here against the function that takes them, which the door then calls.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from dpo_jax import data_sections, methods, models, registry
from dpo_jax.data import batches
from dpo_jax.evals import reward_scores
from dpo_jax.evals import samples as samples_lib
from dpo_jax.training import launch, optimizers, run_log, sharding
from dpo_jax.training import step as steps_lib

Options = Mapping[str, Any]


class ModelSettings(NamedTuple):
  """URIs of the weights, the tokenizer and the reference; how to compute."""

  uri: str
  tokenizer_uri: str
  reference_uri: str
  compute: models.Compute


class CheckpointSettings(NamedTuple):
  """When to save, and the options of `checkpoints.open`."""

  every: int
  options: Options

  @property
  def best(self) -> str | None:
    """The metric by which the best checkpoint is kept."""
    return self.options.get('best')


class SampleSettings(NamedTuple):
  """When to sample the policy, and how."""

  every: int
  sampler: samples_lib.Sampler


class TrainSettings(NamedTuple):
  """The values of a training page.

  steps: None where the page counts epochs (`num_steps`). method: options of
  `methods.build`; schedule, optimizer: of `optimizers.build_schedule` and
  `build`; step: of `step.make_train_step`; train_batches, eval_batches: of the
  functions of these names in `batches`; log: of `run_log.make_log`. samples:
  None for none. normalise: draws the samples over which the rewards of a reward
  model are normalised; None: they are not.
  """

  seed: int
  steps: int | None
  epochs: float | None
  log_every: int
  eval_every: int
  max_nonfinite: int
  check_start: bool
  model: ModelSettings
  train_data: Options
  eval_data: Options
  method: Options
  train_batches: Options
  eval_batches: Options
  schedule: Options
  optimizer: Options
  step: Options
  mesh: jax.sharding.Mesh
  offload_optimizer: bool
  checkpoints: CheckpointSettings
  samples: SampleSettings | None
  log: Options
  normalise: samples_lib.Sampler | None = None

  @property
  def train_rows(self) -> int:
    """Rows of a training batch: one a group of devices and accumulation."""
    return sharding.rows_per_batch(
      self.mesh,
      self.train_batches['batch_size'],
      self.step.get('accumulation_steps', 1),
    )

  @property
  def eval_rows(self) -> int:
    """Rows of a held-out batch: one a group of devices."""
    return sharding.rows_per_batch(
      self.mesh, self.eval_batches['batch_size'], section='eval_batches'
    )


def of(config: Mapping[str, Any]) -> TrainSettings:
  """The settings of a training page; see `check`."""
  methods.refuse_rollouts(config)
  return registry.bind(check, config, 'the config')()


def check(
  *,
  seed: int,
  log_every: int,
  eval_every: int,
  max_nonfinite: int,
  check_start: bool,
  model: Options,
  method: Options,
  train_batches: Options,
  eval_batches: Options,
  optimizer: Options,
  schedule: Options,
  step: Options,
  mesh: Options,
  checkpoints: Options,
  log: Options,
  steps: int | None = None,
  epochs: float | None = None,
  data: Options | None = None,
  train_data: Options | None = None,
  eval_data: Options | None = None,
  samples: Options | None = None,
  distributed: Options | None = None,
  normalise: Options | None = None,
) -> TrainSettings:
  """Checks every section; ValueError for what is wrong with a page alone.

  The keywords are the sections and values that a page has. steps or epochs say
  how long it runs, by default one epoch. data: what train_data and eval_data
  share, see `data_sections.train_and_held_out`. distributed: options of
  `launch.start`, which is called before this.
  """
  steps, epochs = duration(steps, epochs)
  registry.check_integers(
    ('seed', seed, 0),
    ('log_every', log_every, 1),
    ('eval_every', eval_every, 1),
    ('max_nonfinite', max_nonfinite, 1),
  )
  for name, function, options in (
    ('distributed', launch.start, distributed or {}),
    ('train_batches', batches.train_batches, train_batches),
    ('eval_batches', batches.eval_batches, eval_batches),
    ('step', steps_lib.make_train_step, step),
    ('log', run_log.make_log, log),
  ):
    registry.bind(function, options, name)
  train_data, eval_data = data_sections.train_and_held_out(
    data, train_data, eval_data
  )
  bind = registry.bind
  devices, offload_optimizer = bind(mesh_settings, mesh, 'mesh')()
  saves = bind(checkpoint_settings, checkpoints, 'checkpoints')(eval_every)
  settings = TrainSettings(
    seed=seed,
    steps=steps,
    epochs=epochs,
    log_every=log_every,
    eval_every=eval_every,
    max_nonfinite=max_nonfinite,
    check_start=check_start,
    model=bind(model_settings, model, 'model')(),
    train_data=train_data,
    eval_data=eval_data,
    method=method,
    train_batches=train_batches,
    eval_batches=eval_batches,
    schedule=schedule,
    optimizer=optimizer,
    step=step,
    mesh=devices,
    offload_optimizer=offload_optimizer,
    checkpoints=saves,
    samples=optional(sample_settings, samples, 'samples'),
    log=log,
    normalise=optional(reward_scores.sampler, normalise, 'normalise'),
  )
  _build_once(settings)
  return settings


def optional(fn, section: Options | None, name: str) -> Any:
  """`fn` of a section's options; None where there is no section."""
  return None if section is None else registry.bind(fn, section, name)()


def _build_once(settings: TrainSettings) -> None:
  """Builds what needs no data, for the errors of its options."""
  methods.build(settings.method)
  methods.check_beside(settings.method, settings.samples, settings.normalise)
  optimizers.check(settings.optimizer, settings.schedule, settings.steps)
  run_log.make_log(**settings.log)
  _ = settings.train_rows, settings.eval_rows


def num_steps(settings: TrainSettings, num_examples: int) -> int:
  """The steps of a run, its epochs counted as whole batches of examples.

  ValueError where there is not one batch.
  """
  if settings.steps is not None:
    return settings.steps
  batch_size = settings.train_batches['batch_size']
  steps = int(settings.epochs * num_examples) // batch_size
  if not steps:
    raise ValueError(
      f'{settings.epochs:g} epochs of {num_examples} training examples are '
      f'less than one batch of {batch_size} (train_batches.batch_size). Lower '
      'it, or set steps: batches then go on into the next epoch.'
    )
  return steps


def duration(steps, epochs) -> tuple[int | None, float | None]:
  if steps is not None and epochs is not None:
    raise ValueError(
      f'steps is {steps} and epochs is {epochs:g}: set one of the two.'
    )
  if steps is not None:
    registry.check_integer('steps', steps, 1)
    return steps, None
  epochs = 1.0 if epochs is None else epochs
  if not epochs > 0:
    raise ValueError(f'epochs is {epochs}; expected more than 0.')
  return None, epochs


def model_settings(
  *,
  uri: str | None,
  tokenizer: str | None = None,
  reference: str | None = None,
  dtype: str = 'float32',
  remat: str = 'none',
  attention: str = 'tree',
) -> ModelSettings:
  compute = models.Compute(dtype=dtype, remat=remat, attention=attention)
  return model_uris(uri, tokenizer, reference, compute)


def model_uris(uri, tokenizer, reference, compute) -> ModelSettings:
  """The settings, with the tokenizer and reference of the model by default."""
  if uri is None:
    raise ValueError(
      'Which model? Set --config.model.uri to a folder in Hugging Face layout, '
      'a .gguf file, or hf://OWNER/NAME.'
    )
  return ModelSettings(uri, tokenizer or uri, reference or uri, compute)


def checkpoint_settings(
  eval_every: int,
  *,
  every: int,
  keep: int,
  best: str | None = None,
  best_mode: str = 'min',
  background: bool = True,
) -> CheckpointSettings:
  registry.check_integer('checkpoints.every', every, 1)
  if best is not None and every % eval_every:
    raise ValueError(
      f'checkpoints.best is {best!r}, which is known every {eval_every} steps '
      f'(eval_every), but checkpoints.every is {every}. Take a multiple.'
    )
  options = dict(
    keep=keep, best=best, best_mode=best_mode, background=background
  )
  registry.check_integer('checkpoints.keep', keep, 1)
  registry.lookup({'min': 0, 'max': 0}, best_mode, 'best_mode')
  return CheckpointSettings(every, options)


def mesh_settings(
  *, offload_optimizer: bool = False, **sizes
) -> tuple[jax.sharding.Mesh, bool]:
  beside = ('offload_optimizer',)
  make = registry.bind(sharding.make_mesh, sizes, 'mesh', beside)
  return make(), offload_optimizer


def sample_settings(*, every: int | None, **options) -> SampleSettings | None:
  """None, which is no samples, where `every` is None."""
  beside = ('every',)
  sampler = registry.bind(samples_lib.build, options, 'samples', beside)()
  if every is None:
    return None
  registry.check_integer('samples.every', every, 1)
  return SampleSettings(every, sampler)
