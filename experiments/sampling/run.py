"""Times sampling of this project and of transformers, turn by turn.

  python -m experiments.sampling.run --rounds 5

See README.md. Writes cores_N.json beside this file, or into --out.
"""

import argparse
import json
import multiprocessing
import os
import pathlib
import resource
import statistics
import time

from dpo_jax import assets
from experiments.throughput import hf_checkpoint, machine

PROMPTS = 32
# name -> (prompts, what is drawn)
JOBS = {
  'single_greedy': (1, dict(temperature=0.0)),
  'batch_greedy': (PROMPTS, dict(temperature=0.0)),
  'batch_filtered': (PROMPTS, dict(temperature=1.0, top_k=50, top_p=0.9)),
}
SIDES = ('ours', 'peer')


def prompts() -> list[list[int]]:
  """Sentences of movie reviews, every other one as a chat turn."""
  from dpo_jax import tokenizers

  tokenizer = tokenizers.load(assets.SMOLLM2)
  path = assets.resolve(assets.MOVIE_REVIEWS)
  out = []
  for i, line in enumerate(path.read_text('utf-8').splitlines()[:PROMPTS]):
    text = line.split('\t')[2]
    if i % 2:
      message = dict(role='user', content=text)
      text = tokenizer.apply_chat([message], add_generation_prompt=True)
    out.append(tokenizer.encode(text))
  return out


def make_ours(folder: str, new_tokens: int, seed: int):
  """(prompts, rule) -> new tokens, a list a prompt."""
  import jax

  from dpo_jax import sampling, weights

  config, params = weights.load(folder)

  def run(prompts, rule):
    out = sampling.sample(
      params,
      config,
      prompts,
      key=jax.random.key(seed),
      max_new_tokens=new_tokens,
      **rule,
    )
    return out.tokens_BxSxT[:, 0].tolist()

  return run


def make_peer(folder: str, new_tokens: int, seed: int, threads: int):
  """The same by `generate`, its defaults but for what the job sets."""
  import torch
  import transformers

  torch.set_num_threads(threads)
  torch.manual_seed(seed)
  model = transformers.AutoModelForCausalLM.from_pretrained(
    folder, dtype=torch.float32
  ).eval()
  model.generation_config.eos_token_id = None  # All run to the end, as ours.

  def run(prompts, rule):
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
    return out[:, longest:].tolist()

  return run


def work(pipe, side: str, folder: str, options: dict) -> None:
  """A side's process: answers each job with its times and tokens."""
  os.environ.update(JAX_PLATFORMS='cpu', HF_HUB_OFFLINE='1')
  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options['cores']])
  new_tokens, seed = options['new_tokens'], options['seed']
  if side == 'ours':
    run = make_ours(folder, new_tokens, seed)
  else:
    run = make_peer(folder, new_tokens, seed, options['cores'])
  given = prompts()
  pipe.send('ready')
  while (job := pipe.recv()) is not None:
    count, rule = JOBS[job]
    wall, cpu = time.perf_counter(), time.process_time()
    tokens = run(given[:count], rule)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    assert all(len(row) == new_tokens for row in tokens)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    facts = dict(cpu_s=cpu, wall_s=wall, peak_rss_gb=peak)
    pipe.send((facts, tokens))


def measure(pipes, rounds: int) -> dict:
  """{job: {side: [first call, then a call a round]}}, sides taking turns."""
  measured = {job: {side: [] for side in pipes} for job in JOBS}
  for i in range(rounds + 1):
    order = list(pipes) if i % 2 == 0 else list(pipes)[::-1]
    for job in JOBS:
      tokens = {}
      for side in order:
        steal = machine.Steal()
        pipes[side].send(job)
        facts, tokens[side] = pipes[side].recv()
        facts |= dict(steal=steal.share(), load=os.getloadavg()[0])
        measured[job][side].append(facts)
        print(f'round {i} {job} {side}: CPU {facts["cpu_s"]:.2f} s', flush=True)
      if 'greedy' in job and tokens['ours'] != tokens['peer']:
        raise ValueError(f'{job}: the two sides decode different tokens.')
  return measured


def summarise(measured: dict, new_tokens: int) -> dict:
  """Medians and ranges over the rounds; ratios are of the same round."""

  def spread(values):
    return dict(
      median=round(statistics.median(values), 3),
      least=round(min(values), 3),
      most=round(max(values), 3),
    )

  out = {}
  for job, sides in measured.items():
    count = JOBS[job][0] * new_tokens
    cpu = {side: [x['cpu_s'] for x in runs] for side, runs in sides.items()}
    out[job] = {
      'tokens_per_cpu_s': {
        side: spread([count / x for x in times[1:]])
        for side, times in cpu.items()
      },
      'first_call_cpu_s': {side: round(x[0], 2) for side, x in cpu.items()},
    }
    ratios = [b / a for a, b in zip(cpu['ours'][1:], cpu['peer'][1:])]
    out[job]['ours_over_peer'] = spread(ratios)
  return out


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--new_tokens', type=int, default=48)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--cores', type=int, default=1)
  parser.add_argument('--out', default=pathlib.Path(__file__).parent)
  args = parser.parse_args()
  folder = assets.cache_dir('throughput') / 'SmolLM2-135M-Instruct'
  if not folder.exists():
    hf_checkpoint.write(folder)
  context = multiprocessing.get_context('spawn')
  pipes, processes = {}, []
  about = machine.describe()
  for side in SIDES:
    pipes[side], end = context.Pipe()
    arguments = (end, side, str(folder), vars(args))
    processes.append(context.Process(target=work, args=arguments, daemon=True))
    processes[-1].start()
    pipes[side].recv()
  measured = measure(pipes, args.rounds)
  for side, process in zip(SIDES, processes):
    pipes[side].send(None)
    process.join()
  lengths = [len(p) for p in prompts()]
  result = {
    'command': machine.command('experiments.sampling.run'),
    'options': {k: v for k, v in vars(args).items() if k != 'out'},
    'machine': about,
    'prompt_tokens': lengths,
    'summary': summarise(measured, args.new_tokens),
    'measured': measured,
  }
  path = pathlib.Path(args.out) / f'cores_{args.cores}.json'
  path.write_text(json.dumps(result, indent=2) + '\n')
  print(json.dumps(result['summary'], indent=2))


if __name__ == '__main__':
  main()
