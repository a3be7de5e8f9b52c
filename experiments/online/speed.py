"""Times a PPO step of this project and of TRL, turn by turn, in one run.

  pip install --target /tmp/trl112 --no-deps trl==1.12.0
  PYTHONPATH=/tmp/trl112 python -m experiments.online.speed --steps 5

A step is a whole one: completions of fixed length (EOS off) of equally long
prompts, rewards, reference and values, and all epochs of updates. Policy,
reference, value and reward model are SmolLM2-135M in float32 on both sides, the
last two with a random head; AdamW, four epochs, gradients clipped to 1. CPU
seconds of all threads are compared.
"""

import argparse
import contextlib
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

import jax

from dpo_jax import assets, models, tokenizers, weights
from experiments.throughput import machine, run

RESULTS = pathlib.Path(__file__).parent / 'results'


class Side(run.Side):
  """A worker of this study."""

  package = 'experiments.online'


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  add = parser.add_argument
  add('--steps', type=int, default=5, help='measured steps of each side')
  add('--warmup', type=int, default=1)
  add('--prompts', type=int, default=4)
  add('--samples', type=int, default=4, help='of a prompt')
  add('--prompt_tokens', type=int, default=48)
  add('--new_tokens', type=int, default=32)
  add('--epochs', type=int, default=4)
  add('--minibatches', type=int, default=1)
  add('--parts', type=int, default=1, help="TRL's, of a minibatch: memory")
  add('--seed', type=int, default=0)
  add('--out', type=pathlib.Path, default=RESULTS / 'speed.json')
  args = parser.parse_args()
  sys.stdout.reconfigure(line_buffering=True)
  steal, described = machine.Steal(), machine.describe()
  folder = assets.cache_dir('throughput')
  model, reward = folder / 'SmolLM2-135M-Instruct', folder / 'SmolLM2-reward'
  if not model.exists():
    module = 'experiments.throughput.hf_checkpoint'
    subprocess.run([sys.executable, '-m', module, str(model)], check=True)
  if not reward.exists():
    _write_reward(model, reward)
  prompts = _prompts(model, args.prompts, args.prompt_tokens)
  common = dict(
    model=str(model),
    reward=str(reward),
    max_new_tokens=args.new_tokens,
    epochs=args.epochs,
    minibatches=args.minibatches,
    learning_rate=3e-6,
    steps=args.warmup + args.steps,
    seed=args.seed,
  )
  repeated = [ids for ids in prompts for _ in range(args.samples)]
  options = {
    'trl_ppo': common | {'prompts': repeated, 'parts': args.parts},
    'ours': common | {'prompts': prompts, 'num_samples': args.samples},
  }
  with contextlib.ExitStack() as stack:
    logs = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
    sides = {}
    for name, given in options.items():
      sides[name] = Side(name, given, logs / f'{name}.log')
      stack.callback(sides[name].close)
    measured = _measure(sides, args.warmup, args.steps)
  ratios = [
    peer['cpu_s'] / own['cpu_s']
    for peer, own in zip(measured['trl_ppo'], measured['ours'])
  ]
  result = {
    'command': machine.command('experiments.online.speed'),
    'machine': described,
    'steal': steal.share(),
    'cpu_ratio_trl_over_ours': {
      'median': statistics.median(ratios),
      'each': ratios,
    },
    'steps': measured,
  }
  args.out.parent.mkdir(parents=True, exist_ok=True)
  args.out.write_text(json.dumps(result, indent=1) + '\n')
  print(f'TRL / dpo_jax: {result["cpu_ratio_trl_over_ours"]}')


def _measure(sides, warmup: int, steps: int) -> dict[str, list[dict]]:
  """Every step of both sides, warm-up left out, who is first alternating."""
  measured = {name: [] for name in sides}
  for i in range(warmup + steps):
    for name in list(sides)[:: 1 if i % 2 == 0 else -1]:
      answer = sides[name].step()
      print(f'step {i} {name}: {answer}')
      if i >= warmup:
        measured[name].append(answer)
  return measured


def _write_reward(model: pathlib.Path, folder: pathlib.Path) -> None:
  """SmolLM2 with a random scalar head, as both sides load it."""
  config, params = weights.load(str(model))
  config, params = models.with_scalar_head(
    config, params, jax.random.key(0), stddev=0.02
  )
  tokenizer = tokenizers.load(str(model))
  with assets.atomic_path(folder) as temp:
    ids = dict(bos_id=tokenizer.bos_id, eos_id=tokenizer.eos_id)
    weights.save(temp, config, params, **ids)
    tokenizer.save(temp)


def _prompts(model: pathlib.Path, count: int, length: int) -> list[list[int]]:
  """Sentences of movie reviews, joined and cut to equal lengths."""
  tokenizer = tokenizers.load(str(model))
  lines = assets.resolve(assets.MOVIE_REVIEWS).read_text('utf-8').split('\n')
  texts = [line.split('\t')[-1] for line in lines if line]
  ids = tokenizer.encode(' '.join(texts[: 40 * count]))
  return [list(ids[i * length : (i + 1) * length]) for i in range(count)]


if __name__ == '__main__':
  main()
