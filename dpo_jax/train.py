"""Train a policy.

  python -m dpo_jax.train --config configs/quickstart.py --workdir runs/first
  python -m dpo_jax.train --config dpo --config.model.uri=hf://OWNER/NAME ...
  python -m dpo_jax.train --config configs/dpo.py --help

A config page is a file of values, named by its path or, for those that come
with dpo_jax, by its name. --config.SECTION.OPTION=VALUE sets any option, also
one that the page does not have: --config.optimizer.name=adamw
--config.steps=100. The last command lists the options of a page, with their
values. The same command again goes on where a run was stopped or killed.
"""

import contextlib
import os
import pathlib
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import tqdm
from absl import flags, logging

from dpo_jax import assets, cli, options, registry, settings, types, weights
from dpo_jax import parts as parts_lib
from dpo_jax.data import batches
from dpo_jax.evals import flops, kl, samples
from dpo_jax.training import (
  curves,
  devices,
  inputs,
  loop,
  metrics,
  processes,
  reports,
  sharding,
)
from dpo_jax.training import step as steps_lib
from dpo_jax.training import workdir as workdir_lib

# What a run that obeyed a SIGTERM exits with: 128 + 15, as shells report it.
TERMINATED = 143
# How far the first evaluation may be from what a policy that is its own
# reference has: sums of float32 round. Relative to that above 1.
START_TOLERANCE = 1e-3


def train(
  workdir: str | os.PathLike, config: Mapping[str, Any]
) -> dict[str, float]:
  """Runs one config, or what is left of it; returns the last held-out metrics.

  `workdir` is the run's directory (README.md lists what it gets). ValueError
  before any long work for options that nothing reads, for parts that do not fit
  together, for a directory that another config or process has or that began
  with other inputs, and for it or a cache that can't be written. SystemExit
  after a SIGTERM, with all that is needed to go on saved. Of many processes all
  call this alike; process 0 decides and writes what is not a part of arrays.
  """
  workdir = assets.local_path(workdir, '--workdir')
  distributed = config.get('distributed') or {}
  registry.bind(processes.start, distributed, 'distributed')()
  with processes.together():
    processes.agree('config', workdir_lib.lines(config))
    processes.agree('versions and devices', processes.described())
    run = registry.bind(settings.check, config, 'the config')()
    assets.check_cache()
    with workdir_lib.claim(workdir, config), workdir_lib.sigterm() as stopping:
      if processes.share((workdir / 'params').exists()):
        logging.info('This run is finished: %s.', workdir / 'summary.txt')
      else:
        with inputs.of_run(workdir) as known:
          _train(workdir, config, run, known, stopping)
    return _logged(workdir, lambda row: 'eval/loss' in row)[-1]


def _train(workdir, config, run: settings.Run, known, stopping) -> None:
  began = time.monotonic()
  run, parts, params = parts_lib.load(run, known)
  score = steps_lib.make_score(parts.method)
  train_batches, eval_batches, reference = parts_lib.prepare(
    run, parts, params, score
  )

  with run.open_checkpoints(workdir / 'checkpoints') as saved:
    state, progress, resumed = _start(run, parts, params, reference, saved)
    places = jax.tree.map(lambda x: x.sharding, state)
    frozen = parts.method.freeze(reference)
    del params, reference
    first_step = resumed or 0
    rewind_to = -1 if resumed is None else resumed
    if processes.first():
      workdir_lib.rewind(workdir / 'metrics.jsonl', rewind_to)
    log = run.make_log(workdir, run_config=config, resume_step=resumed)
    evaluate = _make_evaluate(run, parts, score, frozen, eval_batches, log)
    sample = _make_sample(run, parts, workdir, log)

    def save(step, state, progress):
      row = _row(workdir, step)
      known = row if run.best in row else None
      saved.save(step, state, progress.to_json(), known)
      if processes.first():
        curves.draw(workdir, workdir / 'curves.png', title=workdir.name)

    if resumed is None:
      evaluate(0, state, progress)
      _check_start(run, parts.method, _row(workdir, 0))
      if run.sample_every:
        sample(0, state, progress)
    state, progress = loop.fit(
      run.make_step(
        parts.method, run.optimizer, (places, sharding.whole(run.mesh))
      ),
      state,
      frozen,
      batches.iterate(train_batches, start=first_step),
      run.mesh,
      progress,
      first_step=first_step,
      num_steps=run.steps,
      log_every=run.log_every,
      max_nonfinite=run.max_nonfinite,
      numbers=_numbers(run, parts),
      write=log.write,
      actions=[
        loop.Action(run.eval_every, evaluate),
        *([loop.Action(run.sample_every, sample)] if run.sample_every else []),
        loop.Action(run.checkpoint_every, save),
      ],
      stopping=stopping,
    )
    if int(state.step) < run.steps:
      save(int(state.step), state, progress)
      saved.wait()
      log.close()
      logging.warning(
        'Stopped after step %d; the same command goes on.', state.step
      )
      raise SystemExit(TERMINATED)
    saved.wait()
  if processes.first():
    _summarise(workdir, run, began, resumed)
  log.close()
  # Last: a directory with params/ is a finished run.
  _save_params(workdir / 'params', parts, state.params)


def _start(run: settings.Run, parts: parts_lib.Parts, params, reference, saved):
  """(state, progress, step of the checkpoint that they are from or None)."""

  def make(params, reference):
    # What is frozen may be these very arrays, so the state, which every step
    # donates, gets its own.
    return steps_lib.init_state(
      parts.method,
      run.optimizer,
      jax.tree.map(jnp.copy, params),
      jax.random.key(run.seed),
      reference=reference,
    )

  shapes = jax.eval_shape(make, params, reference)
  places = sharding.like_params(run.mesh, params, shapes)
  if run.offload_optimizer:
    places = sharding.offloaded(places)
  found = saved.restore(sharding.placed(shapes, places))
  if found is not None:
    step, state, progress = found
    logging.info('Going on from the checkpoint of step %d.', step)
    return state, loop.Progress.from_json(progress), step
  state = jax.jit(make, out_shardings=places)(params, reference)
  return state, loop.Progress(), None


def _make_evaluate(run, parts, score, frozen, eval_batches, log) -> Callable:
  """action(step, state, progress): held-out metrics to the log."""
  eval_step = steps_lib.make_eval_step(parts.method, score)

  def evaluate(step, state, progress):
    del progress
    row = loop.evaluate(
      eval_step,
      state,
      frozen,
      batches.iterate(eval_batches),
      run.mesh,
      num_batches=len(eval_batches),
    )
    log.write(step, row)

  return evaluate


def _make_sample(run, parts, workdir, log) -> Callable:
  """action(step, state, progress): own samples on held-out prompts."""
  sampler = run.sampler
  if sampler is None:
    return lambda step, state, progress: None
  prompts, num_samples = sampler.choose(parts.held_out)
  sequence_kl = kl.make_sequence_kl(
    parts.policy, run.mesh, max_new_tokens=sampler.max_new_tokens
  )

  def sample(step, state, progress):
    del progress
    rows = sampler.draw(
      state.params,
      parts.config,
      prompts,
      parts.tokenizer,
      # The same key at every step: what changes is the policy.
      key=jax.random.key(run.seed),
      num_samples=num_samples,
      compute=run.model.compute,
    )
    start = state.params
    if step or run.model.reference_uri != run.model.uri:
      # Held nowhere, so that training has the memory.
      start, _ = parts_lib.read_reference(run, parts)
    rows = sequence_kl(state.params, start, prompts, rows)
    if processes.first():
      samples.write(workdir, step, rows)
    log.write(step, sampler.statistics(rows))
    log.text(step, 'samples', samples.show(rows))

  return sample


def _check_start(run: settings.Run, method: types.Method, row) -> None:
  """The first evaluation is of a policy that is its own reference."""
  if run.best is not None and run.best not in row:
    raise registry.unknown('metric checkpoints.best', run.best, row)
  for name, expected in method.at_start.items() if run.check_start else ():
    given, expected = row[f'eval/{name}'], float(expected)
    if not abs(given - expected) <= START_TOLERANCE * max(1, abs(expected)):
      raise ValueError(
        f'At step 0 eval/{name} is {given:.5f}; where the reference is the '
        f"policy's start it is {expected:.5f}, to {START_TOLERANCE}. The "
        'reference is not that start. If it is not meant to be '
        '(model.reference), set check_start=False.'
      )


def _numbers(run: settings.Run, parts: parts_lib.Parts) -> loop.Numbers:
  """What the logged rows need to know of the run."""
  peak, source = devices.total_peak_flops(
    run.mesh.devices.flat, dtype=run.model.compute.dtype
  )
  reference_in_step = parts.method.reference in ('in_step', 'drifting')
  pairs = {'pairs', 'targeted'} & {(parts.method.kinds or ('',))[0]}
  unit = 'pairs' if pairs else 'examples'
  logging.info('MFU is a share of %.3g FLOP/s: %s.', peak, source)
  return loop.Numbers(
    schedule=run.schedule,
    flops=lambda batch: flops.training_flops(
      parts.config, batch, reference_in_step=reference_in_step
    ),
    peak=peak,
    unit=unit,
    where=parts.records.where,
  )


def _summarise(workdir, run, began, resumed) -> None:
  """The end of the run, on the terminal and in summary.txt."""
  rows = metrics.read_jsonl(workdir / 'metrics.jsonl')
  if run.sample_every:
    before, after = (
      samples.read(workdir / 'samples' / f'{step:06d}.jsonl')
      for step in (0, run.steps)
    )
    tqdm.tqdm.write(samples.show(after, before=before))
  cpu_seconds, peak_bytes = reports.usage()
  text = reports.summary(
    rows,
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
  tqdm.tqdm.write(text)
  with assets.atomic_path(workdir / 'summary.txt') as temp:
    temp.write_text(text + '\n')


def _save_params(path: pathlib.Path, parts: parts_lib.Parts, params) -> None:
  """The model and its tokenizer, whole or not there."""
  first = processes.first()
  ids = dict(bos_id=parts.tokenizer.bos_id, eos_id=parts.tokenizer.eos_token_id)
  with (
    assets.atomic_path(path) if first else contextlib.nullcontext(path) as temp
  ):
    weights.save(temp, parts.config, params, **ids)
    if first:
      parts.tokenizer.save(temp)


def _row(workdir: pathlib.Path, step: int) -> dict[str, float]:
  """All that was logged of a step."""
  rows = _logged(workdir, lambda row: row['step'] == step)
  return {k: v for row in rows for k, v in row.items()}


def _logged(workdir: pathlib.Path, which: Callable) -> list[dict[str, float]]:
  """The rows of metrics.jsonl that are asked for, in every process."""
  rows = []
  if processes.first():
    rows = metrics.read_jsonl(workdir / 'metrics.jsonl')
  return processes.share([row for row in rows if which(row)])


def main(argv, page):
  if len(argv) > 1:
    sys.exit(f'Flags alone are expected; given: {" ".join(argv[1:])}')
  train(_WORKDIR.value or f'runs/{page.name}', page.config)


if __name__ == '__main__':
  logging.set_verbosity(logging.INFO)
  _WORKDIR = flags.DEFINE_string(
    'workdir', None, "The run's directory; default: runs/NAME_OF_THE_PAGE."
  )
  cli.run(main, options.TRAINING)
