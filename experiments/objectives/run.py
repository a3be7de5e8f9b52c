"""Every objective on the quickstart's data, one after another.

  python -m experiments.objectives.run

Trains what has no result yet, each in a process of its own, measures all
policies alike, and writes results/NAME_SEED.json. See README.md.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

import jax

from configs import objectives, quickstart
from dpo_jax import (
  build,
  methods,
  models,
  registry,
  settings,
  tokenizers,
  types,
  weights,
)
from dpo_jax.data import batches
from dpo_jax.evals import kl
from dpo_jax.training import fingerprints, loop, metrics, sharding
from dpo_jax.training import step as steps_lib
from experiments.throughput import machine

RESULTS = pathlib.Path(__file__).parent / 'results'


class Judge:
  """Measures a policy as DPO with beta 1 would: rewards are log-ratios.

  All policies with the same held-out pairs, prompt and keys, against the same
  start.
  """

  def __init__(self):
    c = quickstart.get_config()
    c.method.beta = 1.0
    # Only the held-out pairs are read.
    c.steps, c.train_batches.batch_size = 1, 8
    c.schedule.warmup_steps = 0
    self.s = s = settings.of(c.to_dict())
    self.tokenizer = tokenizers.load(s.model.tokenizer_uri)
    self.data = build.load_data(s, self.tokenizer)
    self.config, self.start = build.load_model(s.mesh, s.model.uri)
    policy = models.policy(self.config, s.model.compute, s.mesh)
    self.method = methods.build(s.method)(policy)
    score = steps_lib.make_score(self.method)
    packed = build.pack(s, self.data, self.method, s.steps)
    self.batches = build.with_reference_logps(
      s,
      packed,
      self.config,
      score,
      self.start,
      fingerprints.of_params(self.start),
    ).held_out
    self.eval_step = steps_lib.make_eval_step(self.method, score)
    self.sequence_kl = kl.make_sequence_kl(
      policy, s.mesh, max_new_tokens=s.samples.sampler.max_new_tokens
    )

  def measure(self, params) -> dict[str, float]:
    s, sampler = self.s, self.s.samples.sampler
    params = sharding.replicate(s.mesh, params)
    key = sharding.replicate(s.mesh, jax.random.key(0))
    total, _ = loop.evaluate(
      self.eval_step,
      types.TrainState(None, params, None, self.method.init_aux(params), key),
      types.Frozen(),
      batches.iterate(self.batches, s.mesh),
      num_batches=len(self.batches),
    )
    prompts, num_samples = sampler.choose(self.data.held_out)
    rows = sampler.draw(
      params,
      self.config,
      prompts,
      self.tokenizer,
      key=jax.random.key(s.seed),
      num_samples=num_samples,
      compute=s.model.compute,
    )
    rows = self.sequence_kl(params, self.start, prompts, rows)
    return loop.held_out_row(total) | sampler.statistics(rows)


def train_and_measure(name: str, seed: int, judge: Judge, jit: str) -> dict:
  with tempfile.TemporaryDirectory() as folder:
    workdir = pathlib.Path(folder) / 'run'
    began = time.monotonic()
    command = [sys.executable, '-m', 'experiments.objectives.one']
    done = subprocess.run(
      [*command, name, str(seed), str(workdir)],
      env={**os.environ, 'STUDY_JIT': jit},
      capture_output=True,
      text=True,
    )
    if done.returncode:
      raise SystemExit(f'{name}, seed {seed}:\n{done.stderr[-5000:]}')
    seconds = time.monotonic() - began
    _, params = weights.load(str(workdir / 'params'))
    rows = metrics.read_jsonl(workdir / 'metrics.jsonl')
    return {
      'objective': name,
      'seed': seed,
      'method': objectives.OBJECTIVES[name],
      'command': machine.command('experiments.objectives.run'),
      'machine': machine.describe(),
      'seconds': round(seconds, 1),
      'measured': judge.measure(params),
      'rows': [row for row in rows if 'loss' in row],
    }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--objectives', nargs='*', default=None)
  parser.add_argument('--seeds', type=int, nargs='*', default=[0, 1, 2])
  parser.add_argument('--out', type=pathlib.Path, default=RESULTS)
  args = parser.parse_args()
  names = args.objectives or list(objectives.OBJECTIVES)
  for name in names:
    registry.lookup(objectives.OBJECTIVES, name, 'objective')
  args.out.mkdir(parents=True, exist_ok=True)
  judge, jit = Judge(), tempfile.mkdtemp()
  if not (args.out / 'start.json').exists():
    start = {
      'machine': machine.describe(),
      'measured': judge.measure(judge.start),
    }
    write(args.out / 'start.json', start)
  for seed in args.seeds:
    for name in names:
      path = args.out / f'{name}_{seed}.json'
      if not path.exists():
        write(path, train_and_measure(name, seed, judge, jit))
        print(path.name, flush=True)
  shutil.rmtree(jit)


def write(path: pathlib.Path, result: dict) -> None:
  temp = path.with_suffix('.part')
  temp.write_text(json.dumps(result, indent=1) + '\n')
  temp.rename(path)


if __name__ == '__main__':
  main()
