"""Train a policy: python -m dpo_jax.train --config configs/x.py --workdir DIR.

A config is a page of values (see configs/quickstart.py); each can be set on the
command line: --config.optimizer.name=adamw --config.steps=100.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags, logging
from ml_collections import config_flags

from dpo_jax import data, methods, models, registry, tokenizers, weights
from dpo_jax.data import batches
from dpo_jax.training import loop, optimizers, sharding
from dpo_jax.training import step as steps_lib


def train(
  workdir: pathlib.Path,
  *,
  seed: int,
  steps: int,
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
  log_every: int,
  max_nonfinite: int,
) -> dict[str, float]:
  """Runs one config and returns the last held-out metrics.

  Writes metrics.jsonl into `workdir`, and the trained parameters, in Hugging
  Face layout, into its params/. ValueError before any long work for options
  that nothing reads and for parts that do not fit together.
  """
  # Whatever can be wrong with the config alone shows before anything is read.
  make_method = registry.build(methods.METHODS, method, 'method')()
  lr = registry.build(optimizers.SCHEDULES, schedule, 'schedule')(steps)
  tx = registry.build(optimizers.OPTIMIZERS, optimizer, 'optimizer')(lr)
  make_step = registry.bind(steps_lib.make_train_step, step, 'step')
  load_model = registry.bind(_load_model, model, 'model')
  pack_train = registry.bind(
    batches.train_batches, train_batches, 'train_batches'
  )
  pack_eval = registry.bind(batches.eval_batches, eval_batches, 'eval_batches')
  devices = registry.bind(sharding.make_mesh, mesh, 'mesh')()
  rows = sharding.rows_per_batch(
    devices, train_batches['batch_size'], step.get('accumulation_steps', 1)
  )
  eval_rows = sharding.rows_per_batch(devices, eval_batches['batch_size'])

  policy, model_config, params, tokenizer = load_model()
  method = make_method(policy)
  records = data.load(train_data, tokenizer=tokenizer)
  held_out = data.load(eval_data, tokenizer=tokenizer)
  for part in (records, held_out):
    data.check_fits(
      part,
      arity=method.arity,
      vocab_size=model_config.vocab_size,
      max_positions=model_config.max_positions,
    )
  batches_of_run = pack_train(records, steps, rows, seed)
  eval_batches_of_run = pack_eval(held_out, eval_rows)
  _report(params, records, held_out, batches_of_run, eval_batches_of_run)

  params = sharding.replicate(devices, params)
  # What is frozen may be these very arrays, so the state, which every step
  # donates, gets its own.
  frozen = method.freeze(params)
  state = steps_lib.init_state(
    method, tx, jax.tree.map(jnp.copy, params), jax.random.key(seed)
  )
  train_step = make_step(method, tx)
  eval_step = steps_lib.make_eval_step(method)
  log = loop.Log(workdir)

  log.write(
    0, loop.evaluate(eval_step, state, frozen, eval_batches_of_run, devices)
  )
  state = loop.fit(
    train_step,
    state,
    frozen,
    batches.iterate(batches_of_run),
    devices,
    log,
    num_steps=steps,
    log_every=log_every,
    max_nonfinite=max_nonfinite,
    schedule=lr,
  )
  last = loop.evaluate(eval_step, state, frozen, eval_batches_of_run, devices)
  log.write(steps, last)
  weights.save(workdir / 'params', model_config, state.params)
  logging.info('Saved parameters to %s.', workdir / 'params')
  return last


def _load_model(
  *,
  uri: str,
  tokenizer: str | None = None,
  dtype: str = 'float32',
  remat: str = 'none',
  attention: str = 'tree',
):
  """(policy, config, params, tokenizer); the tokenizer is the model's own."""
  compute = models.Compute(dtype=dtype, remat=remat, attention=attention)
  loaded_tokenizer = tokenizers.load(tokenizer or uri)
  config, params = weights.load(uri)
  return models.policy(config, compute), config, params, loaded_tokenizer


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


def _new_workdir(path: str, config) -> pathlib.Path:
  """Creates the run's directory, config.json in it; ValueError if not empty."""
  workdir = pathlib.Path(path).expanduser()
  if workdir.is_dir() and any(workdir.iterdir()):
    raise ValueError(
      f'--workdir {str(workdir)!r} is not empty: it may hold another run. Give '
      'a new directory, or remove this one.'
    )
  workdir.mkdir(parents=True, exist_ok=True)
  text = json.dumps(config.to_dict(), indent=2)
  (workdir / 'config.json').write_text(text + '\n')
  return workdir


def main(argv):
  del argv
  config = _CONFIG.value
  run = registry.bind(train, config, 'the config')
  run(_new_workdir(_WORKDIR.value, config))


if __name__ == '__main__':
  logging.set_verbosity(logging.INFO)
  _CONFIG = config_flags.DEFINE_config_file(
    'config', help_string='A config page.'
  )
  _WORKDIR = flags.DEFINE_string('workdir', None, "The run's new directory.")
  flags.mark_flags_as_required(['config', 'workdir'])
  app.run(main)
