"""What a run does besides steps: it starts or resumes, samples, saves, ends.

The functions are shared by train.py and online.py; `s` are the settings of
either.
"""

import pathlib
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
from absl import logging

from dpo_jax import build, registry, types
from dpo_jax.evals import flops, kl, reward_scores, samples
from dpo_jax.rewards import reward_model
from dpo_jax.training import (
  curves,
  devices,
  loop,
  run_log,
  run_summary,
  sharding,
)
from dpo_jax.training import step as steps_lib

TERMINATED = 143  # Exit status after a SIGTERM: 128 + 15, as in shells.


def start(s, method, optimizer, params, reference, saved):
  """(state, progress, step of the checkpoint that they are from or None)."""

  def make(params, reference):
    # What is frozen may be these very arrays, so the state, which every step
    # donates, gets its own.
    return steps_lib.init_state(
      method,
      optimizer,
      jax.tree.map(jnp.copy, params),
      jax.random.key(s.seed),
      reference=reference,
    )

  shapes = jax.eval_shape(make, params, reference)
  shardings = sharding.of_state(
    s.mesh, params, shapes, offload=s.offload_optimizer
  )
  found = saved.restore(sharding.with_shardings(shapes, shardings))
  if found is not None:
    step, state, progress = found
    logging.info('Going on from the checkpoint of step %d.', step)
    return state, loop.Progress.from_json(progress), step
  state = jax.jit(make, out_shardings=shardings)(params, reference)
  return state, loop.Progress(), None


def make_step(
  s, method: types.Method, optimizer, model_config, state, beside=None
):
  """The compiled train step of a state like this.

  Its metrics also count tokens, model FLOPs, and pairs or other examples.
  beside: config of another model that is trained on the same batches.
  """
  pairs = {'pairs', 'targeted'} & {(method.kinds or ('',))[0]}
  counts = flops.step_counts(
    model_config,
    reference_in_step=method.reference in ('in_step', 'drifting'),
    unit='pairs' if pairs else 'examples',
    beside=beside,
  )
  shardings = jax.tree.map(lambda x: x.sharding, state)
  out_shardings = (shardings, sharding.replicated(s.mesh))
  return steps_lib.make_train_step(
    method, optimizer, out_shardings, counts, **s.step
  )


def make_save(workdir, s, saved) -> Callable:
  """action(step, state, progress): a checkpoint, and the curves so far."""

  def save(step, state, progress):
    row = logged_row(workdir, step)
    metric = row if s.checkpoints.best in row else None
    saved.save(step, state, progress.to_json(), metric)
    curves.draw(workdir, workdir / 'curves.png', title=workdir.name)

  return save


def check_best(workdir, s) -> None:
  """ValueError if the metric `checkpoints.best` is not in the first row."""
  if s.checkpoints.best is not None:
    row = logged_row(workdir, 0)
    registry.lookup(row, s.checkpoints.best, 'metric checkpoints.best')


def make_sample(
  workdir,
  s,
  known,
  policy,
  model_config,
  tokenizer,
  held_out,
  log,
  policy_of: Callable = lambda params: params,
  reference: types.Params = None,
) -> Callable:
  """action(step, state, progress): own samples on held-out prompts.

  policy_of(params) -> the policy's parameters in those that are trained.
  reference: its parameters, where the run holds them; None: they are read again
  at each sampling, so that training has the memory.
  """
  if s.samples is None:
    return lambda step, state, progress: None
  sampler = s.samples.sampler
  prompts, num_samples = sampler.choose(held_out)
  sequence_kl = kl.make_sequence_kl(
    policy, s.mesh, max_new_tokens=sampler.max_new_tokens
  )

  def sample(step, state, progress):
    del progress
    own = start = policy_of(state.params)
    rows = sampler.draw(
      own,
      model_config,
      prompts,
      tokenizer,
      # The same key at every step: what changes is the policy.
      key=jax.random.key(s.seed),
      num_samples=num_samples,
      compute=s.model.compute,
    )
    if step or s.model.reference_uri != s.model.uri:
      start = reference
    if start is None:
      start, _ = build.read_reference(s, known, model_config)
    rows = sequence_kl(own, start, prompts, rows)
    samples.write(workdir, step, rows)
    log.write(step, sampler.statistics(rows))
    log.text(step, 'samples', samples.show(rows))

  return sample


def sample_and_save(s, sample, save) -> list[loop.Action]:
  """These two actions, as often as the page says, in this order."""
  samplings = [loop.Action(s.samples.every, sample)] if s.samples else []
  return [*samplings, loop.Action(s.checkpoints.every, save)]


def normalise_rewards(s, score, params, tokenizer, held_out) -> dict[str, str]:
  """Files beside the weights of a reward model: reward.json, where asked for.

  score: of `step.make_score`. The reference is sampled on held-out prompts.
  """
  if s.normalise is None:
    return {}
  uri = s.model.reference_uri
  config, reference = build.load_model(s.mesh, uri)
  prompts, num_samples = s.normalise.choose(held_out)
  rows = s.normalise.draw(
    reference,
    config,
    prompts,
    tokenizer,
    key=jax.random.key(s.seed),
    num_samples=num_samples,
    compute=s.model.compute,
  )
  del reference
  # As in training, EOS ends each completion; some samples were cut off.
  texts = [
    (
      prompts[i // num_samples],
      row['ids'] if row['ended'] else [*row['ids'], tokenizer.eos_id],
    )
    for i, row in enumerate(rows)
  ]
  values = reward_scores.rewards(
    score,
    params,
    reward_scores.token_records(texts),
    s.mesh,
    batch_size=s.eval_batches['batch_size'],
  )
  found = reward_scores.normalisation(
    values, reference=uri, max_new_tokens=s.normalise.max_new_tokens
  )
  logging.info(
    'Rewards of %d samples of %s: mean %.4f, standard deviation %.4f.',
    *(found.samples, uri, found.mean, found.std),
  )
  return {reward_model.FILE: found.to_json()}


def row_context(s, schedule, where) -> loop.RowContext:
  """What logged rows need; where: record -> 'file:row'."""
  peak, source = devices.total_peak_flops(
    s.mesh.devices.flat, dtype=s.model.compute.dtype
  )
  logging.info('MFU is a share of %.3g FLOP/s: %s.', peak, source)
  return loop.RowContext(schedule, peak, where)


def summarise(workdir, s, log, num_steps, began, resumed) -> None:
  """The end of the run, on the terminal and in summary.txt."""
  if s.samples:
    before, after = (samples.read_step(workdir, x) for x in (0, num_steps))
    log.say(samples.show(after, before=before))
  cpu_seconds, peak_bytes = run_summary.usage()
  text = run_summary.summary(
    run_log.read_rows(workdir, lambda row: True),
    seconds=time.monotonic() - began,
    cpu_seconds=cpu_seconds,
    peak_bytes=peak_bytes,
    resume_step=resumed,
    files={
      'model': workdir / 'params',
      'checkpoints': workdir / 'checkpoints',
      'curves': workdir / 'curves.png',
      'metrics': workdir / 'metrics.jsonl',
    },
  )
  log.say(text)
  log.file('summary.txt', text + '\n')


def logged_row(workdir: pathlib.Path, step: int) -> dict[str, float]:
  """All that was logged of a step."""
  rows = run_log.read_rows(workdir, lambda row: row['step'] == step)
  return {k: v for row in rows for k, v in row.items()}


def end(workdir, s, log, state, num_steps, began, resumed) -> None:
  """The summary of a run; SystemExit for one that a SIGTERM has stopped."""
  stopped = int(state.step) < num_steps
  if not stopped:
    summarise(workdir, s, log, num_steps, began, resumed)
  log.close()
  if stopped:
    logging.warning(
      'Stopped after step %d; the same command goes on.', state.step
    )
    raise SystemExit(TERMINATED)
