"""A training config with every name looked up and every option bound.

Only this sees the config: what is wrong with a page alone is found here, before
anything is loaded.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from dpo_jax import methods, models, registry
from dpo_jax.data import batches
from dpo_jax.evals import samples as samples_lib
from dpo_jax.training import checkpoints as checkpoints_lib
from dpo_jax.training import optimizers, reports, sharding
from dpo_jax.training import step as steps_lib


class ModelOptions(NamedTuple):
  uri: str
  tokenizer_uri: str
  reference_uri: str
  compute: models.Compute


class Run(NamedTuple):
  """Values of a config, and its sections as functions ready to call.

  train_examples: those that the run visits, epochs counted. eval_examples: None
  for all that are held out. sample_every: None for no samples.
  """

  seed: int
  steps: int
  log_every: int
  eval_every: int
  max_nonfinite: int
  check_start: bool
  model: ModelOptions
  make_method: Callable
  train_data: Mapping[str, Any]
  eval_data: Mapping[str, Any]
  pack_train: Callable
  pack_eval: Callable
  train_examples: int
  eval_examples: int | None
  schedule: Callable
  optimizer: Any
  make_step: Callable
  mesh: jax.sharding.Mesh
  train_rows: int
  eval_rows: int
  open_checkpoints: Callable
  checkpoint_every: int
  best: str | None
  sampler: samples_lib.Sampler | None
  sample_every: int | None
  make_log: Callable


def check(
  *,
  seed: int,
  steps: int,
  log_every: int,
  eval_every: int,
  max_nonfinite: int,
  check_start: bool,
  model: Mapping[str, Any],
  method: Mapping[str, Any],
  train_data: Mapping[str, Any],
  eval_data: Mapping[str, Any],
  train_batches: Mapping[str, Any],
  eval_batches: Mapping[str, Any],
  optimizer: Mapping[str, Any],
  schedule: Mapping[str, Any],
  step: Mapping[str, Any],
  mesh: Mapping[str, Any],
  checkpoints: Mapping[str, Any],
  log: Mapping[str, Any],
  samples: Mapping[str, Any] | None = None,
) -> Run:
  """Binds every section; ValueError for what can be wrong with a config alone.

  The keywords are the sections and values that a config has.
  """
  for name, value, least in (
    ('seed', seed, 0),
    ('steps', steps, 1),
    ('log_every', log_every, 1),
    ('eval_every', eval_every, 1),
    ('max_nonfinite', max_nonfinite, 1),
  ):
    registry.check_at_least(name, value, least)
  bind = registry.bind
  lr = registry.build(optimizers.SCHEDULES, schedule, 'schedule')(steps)
  pack_train = bind(batches.train_batches, train_batches, 'train_batches')
  pack_eval = bind(batches.eval_batches, eval_batches, 'eval_batches')
  devices = bind(sharding.make_mesh, mesh, 'mesh')()
  accumulation_steps = step.get('accumulation_steps', 1)
  checkpoint_every, open_checkpoints = bind(
    _checkpoint_options, checkpoints, 'checkpoints'
  )(eval_every)
  sample_every, sampler = None, None
  if samples is not None:
    sample_every, sampler = bind(_sample_options, samples, 'samples')()
  return Run(
    seed=seed,
    steps=steps,
    log_every=log_every,
    eval_every=eval_every,
    max_nonfinite=max_nonfinite,
    check_start=check_start,
    model=bind(_model_options, model, 'model')(),
    make_method=registry.build(methods.METHODS, method, 'method')(),
    train_data=train_data,
    eval_data=eval_data,
    pack_train=pack_train,
    pack_eval=pack_eval,
    train_examples=steps * train_batches['batch_size'],
    eval_examples=eval_batches.get('num_examples'),
    schedule=lr,
    optimizer=registry.build(optimizers.OPTIMIZERS, optimizer, 'optimizer')(lr),
    make_step=bind(steps_lib.make_train_step, step, 'step'),
    mesh=devices,
    train_rows=sharding.rows_per_batch(
      devices, train_batches['batch_size'], accumulation_steps
    ),
    eval_rows=sharding.rows_per_batch(devices, eval_batches['batch_size']),
    open_checkpoints=open_checkpoints,
    checkpoint_every=checkpoint_every,
    best=checkpoints.get('best'),
    sampler=sampler,
    sample_every=sample_every,
    make_log=bind(reports.make_log, log, 'log')(),
  )


def _model_options(
  *,
  uri: str,
  tokenizer: str | None = None,
  reference: str | None = None,
  dtype: str = 'float32',
  remat: str = 'none',
  attention: str = 'tree',
) -> ModelOptions:
  compute = models.Compute(dtype=dtype, remat=remat, attention=attention)
  return ModelOptions(uri, tokenizer or uri, reference or uri, compute)


def _checkpoint_options(
  eval_every: int,
  *,
  every: int,
  keep: int,
  best: str | None = None,
  best_mode: str = 'min',
  background: bool = True,
) -> tuple[int, Callable]:
  registry.check_at_least('checkpoints.every', every, 1)
  if best is not None and every % eval_every:
    raise ValueError(
      f'checkpoints.best is {best!r}, which is known every {eval_every} steps '
      f'(eval_every), but checkpoints.every is {every}. Take a multiple.'
    )
  options = dict(
    keep=keep, best=best, best_mode=best_mode, background=background
  )
  registry.check_at_least('checkpoints.keep', keep, 1)
  registry.lookup({'min': 0, 'max': 0}, best_mode, 'best_mode')
  return every, functools.partial(checkpoints_lib.open, **options)


def _sample_options(
  *, every: int | None, **options
) -> tuple[int | None, samples_lib.Sampler]:
  if every is not None:
    registry.check_at_least('samples.every', every, 1)
  build = registry.bind(
    samples_lib.build, options, 'samples', beside=('every',)
  )
  return every, build()
