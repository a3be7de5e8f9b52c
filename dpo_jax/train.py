"""Train a policy.

  python -m dpo_jax.train --config configs/quickstart.py --workdir runs/first
  python -m dpo_jax.train --config dpo --config.model.uri=hf://OWNER/NAME ...
  python -m dpo_jax.train --config configs/dpo.py --help

A config page is a Python file of options, named by its path or, if it comes
with dpo_jax, by its name. --config.SECTION.OPTION=VALUE sets any option; the
last command lists them. The same command resumes a stopped or killed run.
"""

import os
import pathlib
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from absl import flags, logging

from dpo_jax import (
  assets,
  build,
  cli,
  methods,
  models,
  online,
  online_settings,
  options,
  pages,
  run_actions,
  run_dir,
  run_report,
  settings,
  tokenizers,
)
from dpo_jax.data import batches
from dpo_jax.training import (
  checkpoints,
  launch,
  loop,
  optimizers,
  preemption,
  run_inputs,
  run_lock,
  run_log,
)
from dpo_jax.training import step as steps_lib


class Result(NamedTuple):
  """A finished run: its last held-out metrics, and where things are.

  metrics: of a page with rollouts those of its samples; empty without any.
  """

  metrics: dict[str, float]
  workdir: pathlib.Path
  params: pathlib.Path
  checkpoints: pathlib.Path
  curves: pathlib.Path
  summary: pathlib.Path


def train(workdir: str | os.PathLike, config: Mapping[str, Any]) -> Result:
  """Runs one config, or what is left of it.

  workdir: the run's directory (README.md lists what it gets). config: a page
  as its `get_config` returns it, or plain dicts. ValueError before any long
  work if an option is unknown; if model, data and method do not match; if
  `workdir` is in use, has another config or began with other inputs; and if
  `workdir` or the cache can't be written. SystemExit after a SIGTERM, with a
  checkpoint to resume from; SIGTERM is handled in the main thread only.
  Collective: all processes of a run call it with the same arguments.
  """
  workdir = assets.local_path(workdir, '--workdir')
  config = pages.plain(config)
  with launch.joined(config.get('distributed') or {}):
    launch.check_same(config)
    # A page with rollouts is of an online method.
    settings_of, run = settings.of, _train
    if config.get('rollouts') is not None:
      settings_of, run = online_settings.of, online.run
    s = settings_of(config)
    assets.check_cache()
    with run_lock.claim(workdir, config), preemption.sigterm() as stopping:
      if run_lock.is_finished(workdir):
        logging.info('This run is finished: %s.', workdir / 'summary.txt')
      else:
        with run_inputs.of_run(workdir) as known:
          run(workdir, config, s, known, stopping)
    metrics = _last_held_out(workdir)
  return Result(
    metrics,
    workdir,
    workdir / 'params',
    workdir / 'checkpoints',
    workdir / 'curves.png',
    workdir / 'summary.txt',
  )


def _last_held_out(workdir: pathlib.Path) -> dict[str, float]:
  for name in ('eval/loss', 'samples/length'):
    if rows := run_log.read_rows(workdir, lambda row, name=name: name in row):
      return rows[-1]
  return {}


def _train(workdir, config, s: settings.TrainSettings, known, stopping) -> None:
  began = time.monotonic()
  tokenizer = tokenizers.load(s.model.tokenizer_uri, model=s.model.uri)
  data = build.load_data(s, tokenizer)
  known.check_data(s.model.tokenizer_uri, tokenizer, **data.by_section())
  num_steps = build.num_steps(s, data.train)
  schedule = optimizers.build_schedule(s.schedule, num_steps)
  optimizer = optimizers.build(s.optimizer, schedule)

  run_inputs.agree_on_weights(s.model.uri, s.model.reference_uri)
  model_config, params = build.load_model(
    s.mesh, s.model.uri, head=methods.head(s.method), seed=s.seed
  )
  policy = models.policy(model_config, s.model.compute, s.mesh)
  # Of methods/dpo.py, for example; training/step.py calls its functions.
  method = methods.build(s.method)(policy)
  build.check(s, tokenizer, data, model_config, method)

  reference, fingerprint = build.reference(s, known, model_config, params)
  packed = build.pack(s, data, method, num_steps)
  run_report.report(s, tokenizer, data, packed, method, params)
  known.save()
  score = steps_lib.make_score(method)
  # 'cached': log-probabilities of the reference become a part of the batches.
  if method.reference == 'cached':
    packed = build.with_reference_logps(
      s, packed, model_config, score, reference, fingerprint
    )
  if method.reference in ('none', 'cached'):
    reference = None  # Training does not hold it.
  frozen = method.freeze(reference)

  with checkpoints.open(
    workdir / 'checkpoints', **s.checkpoints.options
  ) as saved:
    state, progress, resumed = run_actions.start(
      s, method, optimizer, params, reference, saved
    )
    del params, reference
    log = run_log.make_log(**s.log)(
      workdir, run_config=config, resume_step=resumed
    )
    evaluate = _make_evaluate(s, method, score, frozen, packed.held_out, log)
    sample = run_actions.make_sample(
      workdir, s, known, policy, model_config, tokenizer, data.held_out, log
    )
    save = run_actions.make_save(workdir, s, saved)
    if resumed is None:
      evaluate(0, state, progress)
      build.check_start(s, method, run_actions.logged_row(workdir, 0))
      run_actions.check_best(workdir, s)
      if s.samples:
        sample(0, state, progress)
    state, progress = loop.fit(
      run_actions.make_step(s, method, optimizer, model_config, state),
      state,
      frozen,
      batches.iterate(packed.train, s.mesh, start=resumed or 0),
      progress,
      num_steps=num_steps,
      log_every=s.log_every,
      max_nonfinite=s.max_nonfinite,
      context=run_actions.row_context(s, schedule, data.train.where),
      write=log.write,
      actions=[
        loop.Action(s.eval_every, evaluate),
        *run_actions.sample_and_save(s, sample, save),
      ],
      stopping=stopping,
    )
    stopped = int(state.step) < num_steps
    if stopped:
      save(int(state.step), state, progress)
    saved.wait()
  run_actions.end(workdir, s, log, state, num_steps, began, resumed)
  files = run_actions.normalise_rewards(
    s, score, state.params, tokenizer, data.held_out
  )
  run_dir.save_params(workdir, model_config, state.params, tokenizer, files)


def _make_evaluate(s, method, score, frozen, held_out, log) -> Callable:
  """action(step, state, progress): held-out metrics to the log."""
  eval_step = steps_lib.make_eval_step(method, score)

  def evaluate(step, state, progress):
    del progress
    total, _ = loop.evaluate(
      eval_step,
      state,
      frozen,
      batches.iterate(held_out, s.mesh),
      num_batches=len(held_out),
    )
    log.write(step, loop.held_out_row(total))

  return evaluate


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
