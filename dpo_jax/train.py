"""Train a policy: python -m dpo_jax.train --config configs/x.py.

A config is a page of values (see configs/quickstart.py); each can be set on the
command line: --config.optimizer.name=adamw --config.steps=100.
"""

import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import app, flags, logging
from ml_collections import config_flags

from dpo_jax import assets, data, methods, models, registry, tokenizers, weights
from dpo_jax.data import batches
from dpo_jax.training import loop, optimizers, sharding
from dpo_jax.training import step as steps_lib


class Run(NamedTuple):
  """A config whose names and options all exist, bound and ready to call."""

  seed: int
  steps: int
  log_every: int
  max_nonfinite: int
  model: 'ModelOptions'
  make_method: Callable
  train_data: Mapping[str, Any]
  eval_data: Mapping[str, Any]
  pack_train: Callable
  pack_eval: Callable
  schedule: Callable
  optimizer: Any
  make_step: Callable
  mesh: jax.sharding.Mesh
  train_rows: int
  eval_rows: int


class ModelOptions(NamedTuple):
  uri: str
  tokenizer_uri: str
  compute: models.Compute


def check(
  *,
  seed: int,
  steps: int,
  log_every: int,
  max_nonfinite: int,
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
) -> Run:
  """Binds every section; ValueError for what can be wrong with a config alone.

  The keywords are the sections and values that a config has.
  """
  for name, value, least in (
    ('seed', seed, 0),
    ('steps', steps, 1),
    ('log_every', log_every, 1),
    ('max_nonfinite', max_nonfinite, 1),
  ):
    registry.check_at_least(name, value, least)
  lr = registry.build(optimizers.SCHEDULES, schedule, 'schedule')(steps)
  pack_train = registry.bind(
    batches.train_batches, train_batches, 'train_batches'
  )
  pack_eval = registry.bind(batches.eval_batches, eval_batches, 'eval_batches')
  devices = registry.bind(sharding.make_mesh, mesh, 'mesh')()
  make_step = registry.bind(steps_lib.make_train_step, step, 'step')
  accumulation_steps = step.get('accumulation_steps', 1)
  return Run(
    seed=seed,
    steps=steps,
    log_every=log_every,
    max_nonfinite=max_nonfinite,
    model=registry.bind(_model_options, model, 'model')(),
    make_method=registry.build(methods.METHODS, method, 'method')(),
    train_data=train_data,
    eval_data=eval_data,
    pack_train=pack_train,
    pack_eval=pack_eval,
    schedule=lr,
    optimizer=registry.build(optimizers.OPTIMIZERS, optimizer, 'optimizer')(lr),
    make_step=make_step,
    mesh=devices,
    train_rows=sharding.rows_per_batch(
      devices, train_batches['batch_size'], accumulation_steps
    ),
    eval_rows=sharding.rows_per_batch(devices, eval_batches['batch_size']),
  )


def _model_options(
  *,
  uri: str,
  tokenizer: str | None = None,
  dtype: str = 'float32',
  remat: str = 'none',
  attention: str = 'tree',
) -> ModelOptions:
  compute = models.Compute(dtype=dtype, remat=remat, attention=attention)
  return ModelOptions(uri, tokenizer or uri, compute)


def train(workdir: pathlib.Path, config: Mapping[str, Any]) -> dict[str, float]:
  """Runs one config and returns the last held-out metrics.

  Writes config.json and metrics.jsonl into `workdir`, and the trained model, in
  Hugging Face layout, into its params/. ValueError before any long work for
  options that nothing reads and for parts that do not fit together.
  """
  run = registry.bind(check, config, 'the config')()
  tokenizer = tokenizers.load(run.model.tokenizer_uri)
  records = data.load(run.train_data, tokenizer=tokenizer)
  held_out = data.load(run.eval_data, tokenizer=tokenizer)
  model_config, params = weights.load(run.model.uri)
  weights.check_savable(model_config)
  method = run.make_method(models.policy(model_config, run.model.compute))
  _check_fits(tokenizer, model_config, method, (records, held_out))
  train_batches = run.pack_train(records, run.steps, run.train_rows, run.seed)
  eval_batches = run.pack_eval(held_out, run.eval_rows)
  _report(params, records, held_out, train_batches, eval_batches)

  params = sharding.replicate(run.mesh, params)
  # What is frozen may be these very arrays, so the state, which every step
  # donates, gets its own.
  frozen = method.freeze(params)
  params = jax.tree.map(jnp.copy, params)
  key = jax.random.key(run.seed)
  state = steps_lib.init_state(method, run.optimizer, params, key)
  # Placed as the steps return it, or the second step would compile again.
  state = sharding.replicate(run.mesh, state)
  del params
  train_step = run.make_step(method, run.optimizer)
  eval_step = steps_lib.make_eval_step(method)

  def evaluate():
    return loop.evaluate(
      eval_step,
      state,
      frozen,
      batches.iterate(eval_batches),
      run.mesh,
      num_batches=len(eval_batches),
    )

  log = _start_log(workdir, config)
  log.write(0, evaluate())
  state = loop.fit(
    train_step,
    state,
    frozen,
    batches.iterate(train_batches),
    run.mesh,
    log,
    num_steps=run.steps,
    log_every=run.log_every,
    max_nonfinite=run.max_nonfinite,
    schedule=run.schedule,
    where=records.where,
  )
  _save(workdir / 'params', model_config, state.params, tokenizer)
  last = evaluate()
  log.write(run.steps, last)
  return last


def _check_fits(tokenizer, model_config, method, parts) -> None:
  if tokenizer.vocab_size > model_config.vocab_size:
    raise ValueError(
      f'The tokenizer has {tokenizer.vocab_size} tokens, but the model has a '
      f'vocabulary of {model_config.vocab_size}: they belong to two models.'
    )
  for records in parts:
    data.check_fits(
      records,
      arity=method.arity,
      vocab_size=model_config.vocab_size,
      max_positions=model_config.max_positions,
    )


def _report(params, records, held_out, train_batches, eval_batches) -> None:
  count = sum(x.size for x in jax.tree.leaves(params))
  logging.info('%.1fM parameters on %s.', count / 1e6, jax.devices())
  for name, part, packed in (
    ('train', records, train_batches),
    ('held out', held_out, eval_batches),
  ):
    logging.info(
      '%s: %d examples of %d records; %d batches, %.1f %% real tokens, shapes '
      '(rows x tokens): %s.',
      name,
      part.example_counts.sum(),
      len(part),
      len(packed),
      100 * packed.real_fraction,
      ', '.join(f'{s.rows} x {s.length}' for s in packed.shapes),
    )


def _refuse_used(workdir: pathlib.Path) -> None:
  if workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())):
    raise ValueError(
      f'--workdir {str(workdir)!r} is not empty: it may hold another run. Give '
      'a new directory, or remove this one.'
    )


def _start_log(workdir: pathlib.Path, config: Mapping[str, Any]) -> loop.Log:
  """Creates the run's directory with config.json: nothing failed so far."""
  workdir.mkdir(parents=True, exist_ok=True)
  (workdir / 'config.json').write_text(json.dumps(config, indent=2) + '\n')
  return loop.Log(workdir)


def _save(folder: pathlib.Path, config, params, tokenizer) -> None:
  """A Hugging Face directory, whole or not there: weights and tokenizer."""
  ids = dict(bos_id=tokenizer.bos_id, eos_id=tokenizer.eos_id)
  with assets.atomic_path(folder) as temp:
    weights.save(temp, config, params, **ids)
    tokenizer.save(temp)
  logging.info('Saved the model to %s.', folder)


def main(argv):
  del argv
  config = _CONFIG.value
  page = pathlib.Path(config_flags.get_config_filename(flags.FLAGS['config']))
  workdir = pathlib.Path(_WORKDIR.value or f'runs/{page.stem}').expanduser()
  _refuse_used(workdir)
  train(workdir, config.to_dict())


if __name__ == '__main__':
  logging.set_verbosity(logging.INFO)
  _CONFIG = config_flags.DEFINE_config_file(
    'config', help_string='A config page, such as configs/quickstart.py.'
  )
  _WORKDIR = flags.DEFINE_string(
    'workdir', None, "The run's new directory; default: runs/NAME_OF_THE_PAGE."
  )
  flags.mark_flag_as_required('config')
  app.run(main)
