"""Times sampling of this project, of another commit and of transformers.

  git worktree add ../base d8c23ad
  python -m experiments.sampling.run --rounds 7 --base ../base

The sides take turns; see README.md. Writes cores_N.json beside this file, or
--out.
"""

import argparse
import json
import multiprocessing
import os
import pathlib
import resource
import statistics
import sys
import time

from experiments.throughput import machine

FILTERED = dict(temperature=1.0, top_k=50, top_p=0.9)
GREEDY = dict(temperature=0.0)
# name -> (kind of prompts, how many, most new tokens, what is drawn)
JOBS = {
  'single_greedy': ('mixed', 1, 48, GREEDY),
  'batch_greedy': ('mixed', 32, 48, GREEDY),
  'batch_filtered': ('mixed', 32, 48, FILTERED),
  'unequal_greedy': ('unequal', 256, 128, GREEDY),
}
# Prompts decoded together where answers end; the other commit decodes all.
BATCH_SIZE = 32


def make_ours(folder: str, seed: int, base: str | None):
  """(prompts, most new tokens, eos_id, rule) -> new tokens, a list a prompt."""
  if base is not None:
    sys.path.insert(0, base)
  import jax

  import dpo_jax
  from dpo_jax import sampling, weights

  root = pathlib.Path(dpo_jax.__file__).resolve().parents[1]
  assert base is None or root == pathlib.Path(base).resolve(), root
  config, params = weights.load(folder)

  def run(prompts, new_tokens, eos_id, rule):
    if base is None and eos_id is not None:
      rule = dict(rule, batch_size=BATCH_SIZE)
    out = sampling.sample(
      params,
      config,
      prompts,
      key=jax.random.key(seed),
      max_new_tokens=new_tokens,
      eos_id=eos_id,
      **rule,
    )
    pairs = zip(out.tokens_BxSxT[:, 0], out.lengths_BxS[:, 0])
    return [tokens[:n].tolist() for tokens, n in pairs]

  return run


def make_peer(folder: str, seed: int, threads: int):
  """The same by `generate`, its defaults but for what the job sets."""
  import torch
  import transformers

  torch.set_num_threads(threads)
  torch.manual_seed(seed)
  model = transformers.AutoModelForCausalLM.from_pretrained(
    folder, dtype=torch.float32
  ).eval()

  def run(prompts, new_tokens, eos_id, rule):
    model.generation_config.eos_token_id = eos_id
    rule = dict(rule)
    if rule['temperature'] == 0:
      rule = dict(do_sample=False)
    else:
      rule['do_sample'] = True
    longest = max(map(len, prompts))
    ids = torch.zeros((len(prompts), longest), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
      ids[row, longest - len(prompt) :] = torch.as_tensor(prompt)
      mask[row, longest - len(prompt) :] = 1
    out = model.generate(
      ids,
      attention_mask=mask,
      max_new_tokens=new_tokens,
      pad_token_id=0,
      **rule,
    )
    ends = [] if eos_id is None else eos_id
    return [_to_end(tokens, ends) for tokens in out[:, longest:].tolist()]

  return run


def _to_end(tokens: list[int], ends: list[int]) -> list[int]:
  """The tokens up to the first that ends them."""
  at = [i for i, token in enumerate(tokens) if token in ends]
  return tokens[: at[0] + 1] if at else tokens


def work(pipe, side: str, folder: str, options: dict) -> None:
  """A side's process: answers each job with its times and tokens."""
  os.environ.update(JAX_PLATFORMS='cpu', HF_HUB_OFFLINE='1')
  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options['cores']])
  if side == 'peer':
    run = make_peer(folder, options['seed'], options['cores'])
  else:
    base = options['base'] if side == 'base' else None
    run = make_ours(folder, options['seed'], base)
  pipe.send('ready')
  while (job := pipe.recv()) is not None:
    wall, cpu = time.perf_counter(), time.process_time()
    tokens = run(*job)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    facts = dict(cpu_s=cpu, wall_s=wall, peak_rss_gb=peak)
    pipe.send((facts, tokens))


def given(name: str) -> tuple:
  """(prompts, most new tokens, eos_id, rule) of a job."""
  from experiments.sampling import prompts

  kind, count, new_tokens, rule = JOBS[name]
  eos_id = prompts.paragraph_ends() if kind == 'unequal' else None
  return getattr(prompts, kind)(count), new_tokens, eos_id, rule


def measure(pipes, jobs: dict, rounds: int) -> dict:
  """{job: {side: [first call, then a call a round]}}, sides taking turns."""
  measured = {job: {side: [] for side in pipes} for job in jobs}
  for i in range(rounds + 1):
    order = list(pipes) if i % 2 == 0 else list(pipes)[::-1]
    for name, job in jobs.items():
      tokens = {}
      for side in order:
        steal = machine.Steal()
        pipes[side].send(job)
        facts, tokens[side] = pipes[side].recv()
        facts |= dict(steal=steal.share(), load=os.getloadavg()[0])
        facts |= dict(tokens=sum(map(len, tokens[side])))
        measured[name][side].append(facts)
        print(f'round {i} {name} {side}: {facts}', flush=True)
      for side in order if 'greedy' in name else ():
        # Two orders of a sum can tell two equally probable tokens apart.
        alike = statistics.mean(map(list.__eq__, tokens[side], tokens['ours']))
        measured[name][side][-1]['equal_to_ours'] = alike
  return measured


def spread(values) -> dict:
  return dict(
    median=round(statistics.median(values), 3),
    least=round(min(values), 3),
    most=round(max(values), 3),
  )


def summarise(measured: dict) -> dict:
  """Medians and ranges over the rounds; ratios are of the same round."""
  out = {}
  for job, sides in measured.items():
    cpu = {side: [x['cpu_s'] for x in runs] for side, runs in sides.items()}
    out[job] = {
      'cpu_s': {side: spread(times[1:]) for side, times in cpu.items()},
      'tokens_per_cpu_s': {
        side: spread([x['tokens'] / x['cpu_s'] for x in runs[1:]])
        for side, runs in sides.items()
      },
      'first_call_cpu_s': {side: round(x[0], 2) for side, x in cpu.items()},
      'ours_over': {
        side: spread([a / b for a, b in zip(cpu['ours'][1:], times[1:])])
        for side, times in cpu.items()
        if side != 'ours'
      },
    }
  return out


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('--rounds', type=int, default=7)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--cores', type=int, default=1)
  parser.add_argument('--base', help='a checkout of another commit')
  parser.add_argument('--peer', action='store_true', help='transformers too')
  parser.add_argument('--jobs', nargs='+', choices=JOBS, default=list(JOBS))
  parser.add_argument('--out', help='a file; default: cores_N.json here')
  args = parser.parse_args()
  from dpo_jax import assets
  from experiments.throughput import hf_checkpoint

  folder = assets.cache_dir('throughput') / 'SmolLM2-135M-Instruct'
  if not folder.exists():
    hf_checkpoint.write(folder)
  sides = ['ours', *['base'] * bool(args.base), *['peer'] * args.peer]
  context = multiprocessing.get_context('spawn')
  pipes, processes = {}, []
  about = machine.describe()
  jobs = {name: given(name) for name in args.jobs}
  for side in sides:
    pipes[side], end = context.Pipe()
    arguments = (end, side, str(folder), vars(args))
    processes.append(context.Process(target=work, args=arguments, daemon=True))
    processes[-1].start()
    pipes[side].recv()
  measured = measure(pipes, jobs, args.rounds)
  for side, process in zip(sides, processes):
    pipes[side].send(None)
    process.join()
  result = {
    'command': machine.command('experiments.sampling.run'),
    'options': {
      k: v for k, v in vars(args).items() if k not in ('out', 'base')
    },
    'machine': about,
    'prompt_tokens': {name: [*map(len, job[0])] for name, job in jobs.items()},
    'summary': summarise(measured),
    'measured': measured,
  }
  default = pathlib.Path(__file__).with_name(f'cores_{args.cores}.json')
  path = pathlib.Path(args.out or default)
  path.write_text(json.dumps(result, indent=2) + '\n')
  print(json.dumps(result['summary'], indent=2))


if __name__ == '__main__':
  main()
