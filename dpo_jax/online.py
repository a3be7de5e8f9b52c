"""Training on rollouts: collections of samples, and the steps between them.

`train.train` calls `run` for a page with a section `rollouts`. Checkpoints are
written between collections alone, so that a run that is stopped or killed goes
on from one, and ends as if it had not stopped. After a SIGTERM the steps of a
collection that have begun are finished; one that has not begun is dropped.
"""

import functools
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
from absl import logging

from dpo_jax import (
  build,
  methods,
  models,
  online_settings,
  run_actions,
  run_dir,
  tokenizers,
  types,
  weights,
)
from dpo_jax.data import order
from dpo_jax.evals import samples
from dpo_jax.methods import collection, judging, online_method
from dpo_jax.training import (
  checkpoints,
  loop,
  optimizers,
  run_inputs,
  run_log,
  sharding,
)

# Prompts by which two tokenizers are compared.
_COMPARED = 100


def run(
  workdir: pathlib.Path,
  config: dict[str, Any],
  s: online_settings.OnlineSettings,
  known: run_inputs.Inputs,
  stopping: Callable[[], bool],
) -> None:
  """Runs one page, or what is left of it; see `train.train`."""
  began = time.monotonic()
  tokenizer, data = _read(s, known)
  num_steps = online_settings.num_steps(s, len(data.train))
  schedule = optimizers.build_schedule(s.schedule, num_steps)
  optimizer = optimizers.build(s.optimizer, schedule)
  builder = methods.build_online(s.method)
  model_config, policy, value_config, online, params, reference = _load(
    s, known, builder, tokenizer, data
  )
  collector = _make_collector(
    s, builder, online, model_config, tokenizer, data.train, num_steps
  )
  in_step = online.method.reference == 'in_step'
  frozen = online.method.freeze(reference if in_step else None)

  with checkpoints.open(
    workdir / 'checkpoints', **s.checkpoints.options
  ) as saved:
    state, progress, resumed = run_actions.start(
      s, online.method, optimizer, params, reference, saved
    )
    del params
    reference = reference if online.score else None  # Nothing else reads it.
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
      reference,
    )
    save = run_actions.make_save(workdir, s, saved)
    if resumed is None and s.samples:
      sample(0, state, progress)
      run_actions.check_best(workdir, s)
    train_step = run_actions.make_step(
      s, online.method, optimizer, model_config, state, value_config
    )
    fit = _make_fit(s, train_step, num_steps, log)
    actions = run_actions.sample_and_save(s, sample, save)
    context = run_actions.row_context(s, schedule, data.train.where)
    step, stopped = int(state.step), False
    while step < num_steps and not stopped:
      found = collection.collect(
        collector, state, reference, step // s.rollouts.steps
      )
      if stopped := _stopped(stopping):
        break
      state, progress = fit(
        state.replace(aux=found.aux),
        frozen,
        found.batches,
        progress,
        until=step + s.rollouts.steps,
        context=context._replace(where=found.where),
        actions=[_make_write(s, found, log), *actions],
      )
      step = int(state.step)
      stopped = step < num_steps and _stopped(stopping)
    if stopped and step % s.checkpoints.every:
      save(step, state, progress)
    saved.wait()
  run_actions.end(workdir, s, log, state, num_steps, began, resumed)
  trained = online.policy_of(state.params)
  run_dir.save_params(workdir, model_config, trained, tokenizer)


def _read(s, known) -> tuple[tokenizers.Tokenizer, build.Data]:
  """The tokenizer and the prompts."""
  tokenizer = tokenizers.load(s.model.tokenizer_uri, model=s.model.uri)
  data = build.load_data(s, tokenizer)
  known.check_data(s.model.tokenizer_uri, tokenizer, **data.by_section())
  return tokenizer, data


def _load(
  s, known, builder: online_method.OnlineBuilder, tokenizer, data: build.Data
):
  """(config, policy, config of a separate value model or None, online method,
  what is trained, the reference)."""
  uris = (s.model.uri, s.model.reference_uri, s.value and s.value.uri)
  run_inputs.agree_on_weights(*filter(None, uris))
  config, policy_params = build.load_model(s.mesh, s.model.uri)
  _check(s, tokenizer, data, config)
  policy = models.policy(config, s.model.compute, s.mesh)
  value_config, params = _with_value(
    s, known, builder, tokenizer, data.train, config, policy_params
  )
  value_policy = value_config and models.policy(
    value_config, s.model.compute, s.mesh
  )
  # Of methods/ppo.py, for example.
  online = builder.build(policy, value_policy)
  reads = online.score is not None or online.method.reference != 'none'
  build.check_reference_is_read(s, reads or s.samples is not None)
  reference, _ = build.reference(s, known, config, policy_params)
  judge = s.reward or s.preference
  if judge.source is not None:
    known.check_files('reward', judge.source, judge.files)
  known.save()
  return config, policy, value_config, online, params, reference


def _make_collector(
  s, builder, online, config, tokenizer, records, num_steps: int
) -> collection.Collector:
  made = collection.Collector(
    schedule=s.rollouts,
    online=online,
    config=config,
    compute=s.model.compute,
    tokenizer=tokenizer,
    records=records,
    judge=_judge(s, tokenizer, records),
    mesh=s.mesh,
    rows=s.rows,
    seed=s.seed,
    run_samples=num_steps // s.rollouts.steps * s.rollouts.samples,
    rescore=_make_rescore(online) if builder.on_policy else None,
  )
  collection.log_sizes(made)
  return made


def _judge(s: online_settings.OnlineSettings, tokenizer, records) -> Callable:
  """What judges rollouts; it is loaded, so that its errors come early."""
  if s.reward is not None:
    longest = records.prompt(int(records.prompt_lengths.argmax())).tolist()
    return judging.by_reward(
      s.reward,
      samples.text_of_prompt(longest, tokenizer),
      s.rollouts.max_new_tokens,
    )
  return judging.by_preference(s.preference)


def _stopped(stopping: Callable[[], bool]) -> bool:
  """Whether there was a SIGTERM; of many processes, up to this call."""
  stopping()
  return stopping()


def _check(s, tokenizer, data: build.Data, config: models.ModelConfig) -> None:
  """ValueError for parts that do not match, and prompts without room."""
  build.check_model(tokenizer, data, config)
  for i, length in enumerate(data.train.prompt_lengths):
    if not length:
      raise ValueError(
        f'train_data: {data.train.where(i)}: the prompt is empty, and the '
        'tokenizer has no token to start a text with.'
      )
  _check_room(s, data.train, 'model', config.max_positions)
  if s.samples is not None:
    s.samples.sampler.check(data.held_out, config, tokenizer)


def _check_room(s, records, model: str, positions: int) -> None:
  """ValueError for a prompt that leaves no room for its samples."""
  i, most = int(records.prompt_lengths.argmax()), s.rollouts.max_new_tokens
  length = records.prompt_length(i)
  if length + most > positions:
    raise ValueError(
      f'train_data: {records.where(i)}: the prompt has {length} tokens; with '
      f'rollouts.max_new_tokens={most} it may become {length + most} long, '
      f'but the {model} has {positions} positions.'
    )


def _check_value(s, tokenizer, records, config: models.ModelConfig) -> None:
  """ValueError for a value model that reads other tokens, or shorter texts."""
  build.check_tokenizer(tokenizer, config)
  _check_room(s, records, 'value model', config.max_positions)
  try:
    own = tokenizers.load(s.value.uri)
  except ValueError as error:
    logging.warning('Tokens of value.uri are not compared: %s', error)
    return
  chosen = order.unshuffled(records)[:_COMPARED]
  texts = [tokenizer.decode(records.prompt(i).tolist()) for i in chosen]
  if own.encode_batch(texts) != tokenizer.encode_batch(texts):
    raise ValueError(
      f'value.uri {s.value.uri!r} has another tokenizer than the policy, so '
      'that it would read other tokens than the policy wrote.'
    )


def _with_value(s, known, builder, tokenizer, records, config, policy_params):
  """(config of a separate value model or None, what is trained)."""
  if builder.policy_key is None:
    return None, policy_params
  params = {builder.policy_key: policy_params}
  if not builder.has_value:
    return None, params
  trunk = policy_params
  if s.value.uri is not None:
    if s.value.uri != s.model.uri:
      config = weights.read_config(s.value.uri)
      _check_value(s, tokenizer, records, config)
    config, trunk = build.load_model(s.mesh, s.value.uri, head=None)
    known.check_params('value.uri', s.value.uri, trunk)
  if config.head != 'scalar':
    config, trunk = models.with_scalar_head(
      config,
      trunk,
      jax.random.key(s.seed),
      stddev=0.0,
      place=functools.partial(sharding.replicate, s.mesh),
    )
  if s.value.shared:
    return None, params | {'value': {'score': trunk['score']}}
  return config, params | {'value': trunk}


def _make_rescore(online: online_method.OnlineMethod) -> Callable:
  """fn(params, batch) -> f32[R, N], log-probabilities of the policy."""

  @jax.jit
  def rescore(params, batch):
    found = online.method.score(params, types.Frozen(), batch, None)
    return found['logps']

  return rescore


def _make_fit(s, train_step, num_steps: int, log) -> Callable:
  """`loop.fit` with what is the same for every collection."""
  return functools.partial(
    loop.fit,
    train_step,
    num_steps=num_steps,
    log_every=s.log_every,
    max_nonfinite=s.max_nonfinite,
    write=log.write,
  )


def _make_write(s, found: collection.Collected, log) -> loop.Action:
  """The numbers of a collection, at its last step, to the log."""
  began = time.monotonic()

  def write(step, state, progress):
    del state, progress
    seconds = {**found.seconds, 'updating': time.monotonic() - began}
    total = sum(seconds.values())
    shares = {f'time/{name}': x / total for name, x in seconds.items()}
    metrics = {f'rollouts/{name}': x for name, x in found.metrics.items()}
    log.write(step, metrics | shares)

  return loop.Action(s.rollouts.steps, write)
