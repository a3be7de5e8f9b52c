"""A training config with every name looked up and every option bound.

Only this sees the config: what is wrong with a page alone is found here, before
anything is loaded. How many steps its epochs are is known once the data is:
`in_steps`.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from dpo_jax import methods, models, registry
from dpo_jax.data import batches, overlap, sources
from dpo_jax.evals import samples as samples_lib
from dpo_jax.training import checkpoints as checkpoints_lib
from dpo_jax.training import optimizers, processes, reports, sharding
from dpo_jax.training import step as steps_lib


class ModelOptions(NamedTuple):
  uri: str
  tokenizer_uri: str
  reference_uri: str
  compute: models.Compute


class Run(NamedTuple):
  """Values of a config, and its sections as functions ready to call.

  steps, schedule, optimizer: None until `in_steps` where the config counts
  epochs. eval_examples: None for all that are held out. sample_every: None for
  no samples.
  """

  seed: int
  steps: int | None
  epochs: float | None
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
  batch_size: int
  eval_examples: int | None
  make_schedule: Callable
  make_optimizer: Callable
  schedule: Callable | None
  optimizer: Any
  make_step: Callable
  mesh: jax.sharding.Mesh
  offload_optimizer: bool
  train_rows: int
  eval_rows: int
  open_checkpoints: Callable
  checkpoint_every: int
  best: str | None
  sampler: samples_lib.Sampler | None
  sample_every: int | None
  make_log: Callable

  @property
  def train_examples(self) -> int:
    """Those that the run visits, epochs counted."""
    return self.steps * self.batch_size


def check(
  *,
  seed: int,
  log_every: int,
  eval_every: int,
  max_nonfinite: int,
  check_start: bool,
  model: Mapping[str, Any],
  method: Mapping[str, Any],
  train_batches: Mapping[str, Any],
  eval_batches: Mapping[str, Any],
  optimizer: Mapping[str, Any],
  schedule: Mapping[str, Any],
  step: Mapping[str, Any],
  mesh: Mapping[str, Any],
  checkpoints: Mapping[str, Any],
  log: Mapping[str, Any],
  steps: int | None = None,
  epochs: float | None = None,
  data: Mapping[str, Any] | None = None,
  train_data: Mapping[str, Any] | None = None,
  eval_data: Mapping[str, Any] | None = None,
  samples: Mapping[str, Any] | None = None,
  distributed: Mapping[str, Any] | None = None,
) -> Run:
  """Binds every section; ValueError for what can be wrong with a config alone.

  The keywords are the sections and values that a config has. steps or epochs
  say how long it runs, by default one epoch. data: what train_data and
  eval_data have in common, see `data_sections`. distributed: options of
  `processes.start`, which comes before this.
  """
  registry.bind(processes.start, distributed or {}, 'distributed')
  steps, epochs = _duration(steps, epochs)
  for name, value, least in (
    ('seed', seed, 0),
    ('log_every', log_every, 1),
    ('eval_every', eval_every, 1),
    ('max_nonfinite', max_nonfinite, 1),
  ):
    registry.check_at_least(name, value, least)
  bind, build = registry.bind, registry.build
  train_data, eval_data = data_sections(data, train_data, eval_data)
  pack_train = bind(batches.train_batches, train_batches, 'train_batches')
  pack_eval = bind(batches.eval_batches, eval_batches, 'eval_batches')
  offload_optimizer, devices = bind(_mesh_options, mesh, 'mesh')()
  processes.check_mesh(devices)
  accumulation_steps = step.get('accumulation_steps', 1)
  checkpoint_every, open_checkpoints = bind(
    _checkpoint_options, checkpoints, 'checkpoints'
  )(eval_every)
  sample_every, sampler = None, None
  if samples is not None:
    sample_every, sampler = bind(_sample_options, samples, 'samples')()
  run = Run(
    seed=seed,
    steps=None,
    epochs=epochs,
    log_every=log_every,
    eval_every=eval_every,
    max_nonfinite=max_nonfinite,
    check_start=check_start,
    model=bind(_model_options, model, 'model')(),
    make_method=build(methods.METHODS, method, 'method')(),
    train_data=train_data,
    eval_data=eval_data,
    pack_train=pack_train,
    pack_eval=pack_eval,
    batch_size=train_batches['batch_size'],
    eval_examples=eval_batches.get('num_examples'),
    make_schedule=build(optimizers.SCHEDULES, schedule, 'schedule'),
    make_optimizer=build(optimizers.OPTIMIZERS, optimizer, 'optimizer'),
    schedule=None,
    optimizer=None,
    make_step=bind(steps_lib.make_train_step, step, 'step'),
    mesh=devices,
    offload_optimizer=offload_optimizer,
    train_rows=sharding.rows_per_batch(
      devices, train_batches['batch_size'], accumulation_steps
    ),
    eval_rows=sharding.rows_per_batch(
      devices, eval_batches['batch_size'], section='eval_batches'
    ),
    open_checkpoints=open_checkpoints,
    checkpoint_every=checkpoint_every,
    best=checkpoints.get('best'),
    sampler=sampler,
    sample_every=sample_every,
    make_log=bind(reports.make_log, log, 'log')(),
  )
  # The options of the optimizer are checked with any learning rate.
  run.make_optimizer(0.0)
  return run if steps is None else _timed(run, steps)


def in_steps(run: Run, num_examples: int) -> Run:
  """The run with its epochs as steps: whole batches of `num_examples`.

  ValueError where there is not one, or where the schedule needs more.
  """
  if run.epochs is None:
    return run
  steps = int(run.epochs * num_examples) // run.batch_size
  if not steps:
    raise ValueError(
      f'{run.epochs:g} epochs of {num_examples} training examples are less '
      f'than one batch of {run.batch_size} (train_batches.batch_size). Lower '
      'it, or set steps: batches then go on into the next epoch.'
    )
  return _timed(run, steps)


def _timed(run: Run, steps: int) -> Run:
  schedule = run.make_schedule(steps)
  return run._replace(
    steps=steps, schedule=schedule, optimizer=run.make_optimizer(schedule)
  )


def _duration(steps, epochs) -> tuple[int | None, float | None]:
  if steps is not None and epochs is not None:
    raise ValueError(
      f'steps is {steps} and epochs is {epochs:g}: set one of the two.'
    )
  if steps is not None:
    registry.check_at_least('steps', steps, 1)
    return steps, None
  epochs = 1.0 if epochs is None else epochs
  if not epochs > 0:
    raise ValueError(f'epochs is {epochs}; expected more than 0.')
  return None, epochs


def data_sections(
  common: Mapping[str, Any] | None,
  train: Mapping[str, Any] | None,
  held_out: Mapping[str, Any] | None,
) -> tuple[dict[str, Any], dict[str, Any]]:
  """The sections train_data and eval_data, with what they have in common.

  Each may add to `common` or override it; a value of None is one not given.
  Where both read the same files, one without a `split` gets the other one's
  counterpart, 'train' or 'test'; different files are not split. Without
  `common` both are as they are given. ValueError if held-out rows would be
  trained on, see overlap.py.
  """
  if common is None:
    for name, section in (('train_data', train), ('eval_data', held_out)):
      if section is None:
        raise ValueError(f'The config has neither {name} nor data.')
    sections = [dict(train), dict(held_out)]
  else:
    sections = [
      _given(common) | _given(section or {}) for section in (train, held_out)
    ]
    for section in sections:
      _check_path(section)
    _split(sections, common)
  overlap.check(*sections)
  return tuple(sections)


def _split(sections: list[dict[str, Any]], common: Mapping[str, Any]) -> None:
  if overlap.same(*sections):
    for section, split in zip(sections, overlap.splits(*sections)):
      section['split'] = split
  elif (
    not any('split' in section for section in sections)
    and common.get('held_out_fraction') is not None
  ):
    paths = [section.get('path') for section in sections]
    raise ValueError(
      f'data.held_out_fraction is of one file that is split in two, and '
      f'there are two: {paths[0]!r} and {paths[1]!r}.'
    )


def _given(section: Mapping[str, Any]) -> dict[str, Any]:
  """The section without what is None, or a mapping of nothing else."""
  out = {}
  for name, value in section.items():
    if isinstance(value, Mapping):
      value = _given(value) or None
    if value is not None:
      out[name] = value
  return out


def _check_path(section: Mapping[str, Any]) -> None:
  make = sources.SOURCES.get(section.get('source'))
  option = make and registry.options_of(make).get('path')
  if option and option.default is option.empty and 'path' not in section:
    raise ValueError(
      'Which data? Set --config.data.path to a file, for '
      f'--config.data.source={section["source"]}.'
    )


def _model_options(
  *,
  uri: str | None,
  tokenizer: str | None = None,
  reference: str | None = None,
  dtype: str = 'float32',
  remat: str = 'none',
  attention: str = 'tree',
) -> ModelOptions:
  if uri is None:
    raise ValueError(
      'Which model? Set --config.model.uri to a folder in Hugging Face layout, '
      'a .gguf file, or hf://OWNER/NAME.'
    )
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


def _mesh_options(
  *, offload_optimizer: bool = False, **sizes
) -> tuple[bool, jax.sharding.Mesh]:
  beside = ('offload_optimizer',)
  make = registry.bind(sharding.make_mesh, sizes, 'mesh', beside)
  return offload_optimizer, make()


def _sample_options(
  *, every: int | None, **options
) -> tuple[int | None, samples_lib.Sampler]:
  if every is not None:
    registry.check_at_least('samples.every', every, 1)
  build = registry.bind(
    samples_lib.build, options, 'samples', beside=('every',)
  )
  return every, build()
