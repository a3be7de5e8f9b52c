"""Training on rollouts: collections of samples, and the steps between them.

`train.train` calls `run` for a page with a section `rollouts`. Checkpoints are
written between collections alone, so that a run that is stopped or killed goes
on from one, and ends as if it had not stopped.
"""

import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax

from dpo_jax import (
  build,
  methods,
  models,
  online_settings,
  run_actions,
  run_dir,
  sampling,
  tokenizers,
  types,
)
from dpo_jax.evals import flops
from dpo_jax.methods import collection, judging
from dpo_jax.models import heads
from dpo_jax.training import (
  checkpoints,
  loop,
  optimizers,
  run_inputs,
  run_log,
  sharding,
)
from dpo_jax.training import step as steps_lib


def run(
  workdir: pathlib.Path,
  config: dict[str, Any],
  s: online_settings.OnlineSettings,
  known: run_inputs.Inputs,
  stopping: Callable[[], bool],
) -> None:
  """Runs one page, or what is left of it; see `train.train`."""
  began = time.monotonic()
  tokenizer = tokenizers.load(s.model.tokenizer_uri, model=s.model.uri)
  data = build.load_data(s, tokenizer)
  known.check_data(s.model.tokenizer_uri, tokenizer, **data.by_section())
  num_steps = online_settings.num_steps(s, len(data.train))
  schedule = optimizers.build_schedule(s.schedule, num_steps)
  optimizer = optimizers.build(s.optimizer, schedule)

  model_config, policy_params = build.load_model(s.mesh, s.model.uri)
  _check(s, tokenizer, data, model_config)
  policy = models.policy(model_config, s.model.compute, s.mesh)
  value_policy, params = _with_value(s, known, model_config, policy_params)
  builder = methods.build_online(s.method)
  # Of methods/ppo.py, for example.
  online = builder.build(policy, value_policy)
  reference, _ = build.reference(s, known, model_config, policy_params)
  known.save()
  collector = collection.Collector(
    schedule=s.rollouts,
    online=online,
    on_policy=builder.on_policy,
    config=model_config,
    compute=s.model.compute,
    tokenizer=tokenizer,
    records=data.train,
    judge=_judge(s),
    mesh=s.mesh,
    rows=s.rows,
    seed=s.seed,
    run_samples=num_steps // s.rollouts.steps * s.rollouts.samples,
    rescore=_make_rescore(online),
  )
  collection.log_sizes(collector)
  frozen = online.method.freeze(
    reference if online.method.reference == 'in_step' else None
  )

  with checkpoints.open(
    workdir / 'checkpoints', **s.checkpoints.options
  ) as saved:
    state, progress, resumed = run_actions.start(
      s, online.method, optimizer, params, reference, saved
    )
    del params, policy_params
    if online.score is None:
      reference = None  # No scoring pass reads it.
    log = run_log.make_log(**s.log)(
      workdir, run_config=config, resume_step=resumed
    )
    sample = run_actions.make_sample(
      workdir,
      s,
      known,
      policy,
      model_config,
      tokenizer,
      data.held_out,
      log,
      online.policy_of,
    )
    save = run_actions.make_save(workdir, s, saved)
    if resumed is None and s.samples:
      sample(0, state, progress)
    train_step = _make_step(s, online.method, optimizer, model_config, state)
    context = run_actions.row_context(s, schedule, data.train.where)
    stopped = False
    while int(state.step) < num_steps and not stopped:
      index = int(state.step) // s.rollouts.steps
      until = (index + 1) * s.rollouts.steps
      found = collection.collect(collector, state, reference, index)
      state, progress = loop.fit(
        train_step,
        state.replace(aux=found.aux),
        frozen,
        found.batches,
        progress,
        num_steps=num_steps,
        until=until,
        log_every=s.log_every,
        max_nonfinite=s.max_nonfinite,
        context=context._replace(where=found.where),
        write=log.write,
        actions=[
          loop.Action(s.rollouts.steps, _make_write(found, log)),
          *([loop.Action(s.samples.every, sample)] if s.samples else []),
          loop.Action(s.checkpoints.every, save),
        ],
        stopping=stopping,
      )
      step = int(state.step)
      stopped = stopping() and step < num_steps
      if stopped and step == until and step % s.checkpoints.every:
        save(step, state, progress)
    saved.wait()
  if not stopped:
    run_actions.summarise(workdir, s, log, num_steps, began, resumed)
  log.close()
  if stopped:
    run_actions.exit_after_sigterm(state.step)
  trained = online.policy_of(state.params)
  run_dir.save_params(workdir, model_config, trained, tokenizer)


def _judge(s: online_settings.OnlineSettings) -> Callable:
  """What judges rollouts; loads it, so that its errors come early."""
  if s.reward is not None:
    s.reward([], [])
    return judging.by_reward(s.reward)
  return judging.by_preference(s.preference)


def _check(s, tokenizer, data: build.Data, config: models.ModelConfig) -> None:
  """ValueError for prompts that the model can't complete."""
  build.check_tokenizer(tokenizer, config)
  for name, records in data.by_section().items():
    try:
      sampling.check(
        [records.prompt(i).tolist() for i in range(len(records))],
        config,
        max_new_tokens=s.rollouts.max_new_tokens,
        eos_id=tokenizer.stop_ids,
      )
    except ValueError as error:
      raise ValueError(f'{name}: {error}') from error
  if s.samples is not None:
    s.samples.sampler.check(data.held_out, config, tokenizer)


def _with_value(s, known, config: models.ModelConfig, policy_params):
  """(value policy or None, what is trained)."""
  builder = methods.build_online(s.method)
  if s.method['name'] != 'ppo':
    return None, policy_params
  if not builder.has_value:
    return None, {'policy': policy_params}
  trunk = policy_params
  if s.value.uri is not None:
    config, trunk = build.load_model(s.mesh, s.value.uri, head=None)
    known.check_params('value.uri', s.value.uri, trunk)
  if config.head != 'scalar':
    config, trunk = heads.with_scalar_head(
      config, trunk, jax.random.key(s.seed), stddev=0.0
    )
    trunk['score'] = sharding.replicate(s.mesh, trunk['score'])
  if s.value.shared:
    return None, {'policy': policy_params, 'value': {'score': trunk['score']}}
  value_policy = models.policy(config, s.model.compute, s.mesh)
  return value_policy, {'policy': policy_params, 'value': trunk}


def _make_rescore(online: collection.OnlineMethod) -> Callable:
  """fn(params, batch) -> f32[R, N], log-probabilities of the policy."""

  @jax.jit
  def rescore(params, batch):
    found = online.method.score(params, types.Frozen(), batch, None)
    return found['logps']

  return rescore


def _make_step(s, method: types.Method, optimizer, config, state):
  """The compiled train step of a state like this, which counts what it does."""
  counts = flops.step_counts(
    config,
    reference_in_step=method.reference in ('in_step', 'drifting'),
    unit='examples' if method.arity == 1 else 'pairs',
  )
  shardings = jax.tree.map(lambda x: x.sharding, state)
  out_shardings = (shardings, sharding.replicated(s.mesh))
  return steps_lib.make_train_step(
    method, optimizer, out_shardings, counts, **s.step
  )


def _make_write(found: collection.Collected, log) -> Callable:
  """action: the numbers of a collection, at its last step, to the log."""
  began = time.monotonic()

  def write(step, state, progress):
    del state, progress
    seconds = {**found.seconds, 'updating': time.monotonic() - began}
    total = sum(seconds.values())
    shares = {f'time/{name}': x / total for name, x in seconds.items()}
    metrics = {f'rollouts/{name}': x for name, x in found.metrics.items()}
    log.write(step, metrics | shares)

  return write
