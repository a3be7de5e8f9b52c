"""Costs of K completions of one long prompt, against K prompts of its length.

  python -m experiments.sampling.one_prompt --rounds 3

Each case is a process of its own, held to one core, for its peak of memory.
Writes one_prompt.json beside this file.
"""

import argparse
import json
import multiprocessing
import os
import pathlib
import resource
import time

from experiments.sampling import run
from experiments.throughput import machine

COUNTS = (4, 16, 64)
LENGTH, NEW_TOKENS = 512, 48


def texts(count: int) -> list[list[int]]:
  """So many times LENGTH tokens of movie reviews, one after another."""
  from experiments.sampling import prompts

  t = prompts.tokenizer()
  ids = [i for text in prompts.sentences(4000) for i in t.encode(text)]
  if len(ids) < count * LENGTH:
    raise ValueError(f'{len(ids)} tokens are fewer than {count} x {LENGTH}.')
  return [ids[i * LENGTH : (i + 1) * LENGTH] for i in range(count)]


def work(pipe, count: int, shared: bool, rounds: int) -> None:
  """Sends the CPU seconds of each call, and memory before and at its peak."""
  os.environ['JAX_PLATFORMS'] = 'cpu'
  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
  import jax

  from dpo_jax import assets, sampling, weights

  config, params = weights.load(assets.SMOLLM2)
  jax.block_until_ready(params)
  prompts = texts(count)
  calls, before = [], _peak_gb()
  for _ in range(rounds + 1):
    began = time.process_time()
    sampling.sample(
      params,
      config,
      prompts[:1] if shared else prompts,
      key=jax.random.key(0),
      max_new_tokens=NEW_TOKENS,
      num_samples=count if shared else 1,
    )
    calls.append(round(time.process_time() - began, 2))
  pipe.send(
    dict(
      first_call_cpu_s=calls[0],
      cpu_s=run.spread(calls[1:]),
      loaded_gb=round(before, 2),
      peak_gb=round(_peak_gb(), 2),
    )
  )


def _peak_gb() -> float:
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('--rounds', type=int, default=3)
  rounds = parser.parse_args().rounds
  about = machine.describe()
  context = multiprocessing.get_context('spawn')
  measured = {}
  for count in COUNTS:
    for shared in (True, False):
      pipe, end = context.Pipe()
      process = context.Process(target=work, args=(end, count, shared, rounds))
      process.start()
      name = f'{count} {"of one prompt" if shared else "prompts"}'
      measured[name] = pipe.recv()
      process.join()
      print(name, measured[name], flush=True)
  result = dict(
    command=machine.command('experiments.sampling.one_prompt'),
    prompt_tokens=LENGTH,
    new_tokens=NEW_TOKENS,
    machine=about,
    measured=measured,
  )
  path = pathlib.Path(__file__).with_name('one_prompt.json')
  path.write_text(json.dumps(result, indent=2) + '\n')


if __name__ == '__main__':
  main()
