"""Times a DPO step of this project and of TRL, turn by turn, in one run.

  python -m experiments.throughput.run --set hh_like --batch 4 --steps 8

See README.md. Writes NAME.json and NAME.png into --out.
"""

import argparse
import contextlib
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile

from dpo_jax import assets
from experiments.throughput import machine, make_pairs, report

# set -> (rows of ours, rows of the peer, max_length)
SETS = {
  'imdb_like': ('imdb_like', 'imdb_like', 512),
  'hh_like': ('hh_like', 'hh_like', 512),
  'imdb_study': ('imdb_study', 'imdb_study_pairs', 512),
  'imdb_study_pairs': ('imdb_study_pairs', 'imdb_study_pairs', 512),
  'long': ('long', 'long', 3072),
}
PACKAGE = 'experiments.throughput'


class Side:
  """A worker process, blocked except between a question and its answer."""

  package = PACKAGE

  def __init__(self, module: str, options: dict, log: pathlib.Path):
    self._log = log
    with open(log, 'w') as stderr:
      self._process = subprocess.Popen(
        [sys.executable, '-m', f'{self.package}.{module}', json.dumps(options)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'HF_HUB_OFFLINE': '1'},
      )
    self.facts = self._read()

  def step(self) -> dict:
    """One step's times and metrics, and what others took meanwhile."""
    steal = machine.Steal()
    with contextlib.suppress(BrokenPipeError):  # Reading says what happened.
      self._process.stdin.write('step\n')
      self._process.stdin.flush()
    return {**self._read(), 'steal': steal.share()}

  def close(self) -> None:
    """Lets the worker end by itself, or ends it."""
    with contextlib.suppress(BrokenPipeError):
      self._process.stdin.close()
    try:
      self._process.wait(timeout=60)
    except subprocess.TimeoutExpired:
      self._process.kill()

  def _read(self) -> dict:
    line = self._process.stdout.readline()
    if not line:
      tail = self._log.read_text()[-3000:]
      raise RuntimeError(f'A worker ended before its answer:\n{tail}')
    return json.loads(line)


def measure(sides: dict[str, Side], warmup: int, steps: int) -> dict:
  """Every step of both sides, warm-up left out, who is first alternating."""
  measured = {name: [] for name in sides}
  for i in range(warmup + steps):
    order = list(sides) if i % 2 == 0 else list(sides)[::-1]
    answers = {name: sides[name].step() for name in order}
    if i == 0:
      check_same(answers)
    for name, answer in answers.items():
      seconds = f'{answer["wall_s"]:.1f} s, CPU {answer["cpu_s"]:.1f} s'
      print(f'step {i} {name}: {seconds}, loss {answer["loss"]:.5f}')
      if i >= warmup:
        measured[name].append(answer)
  return measured


def check_same(answers: dict[str, dict]) -> None:
  """ValueError unless the first batch starts at log 2 and scores alike."""
  for name, answer in answers.items():
    if abs(answer['loss'] - math.log(2)) > 1e-3:
      raise ValueError(f'The first loss of {name} is {answer["loss"]}.')
  ours, peer = (answers[name]['logps_chosen'] for name in ('ours', 'peer'))
  if abs(ours - peer) > 0.01 * abs(peer):
    raise ValueError(
      f'Chosen log-probabilities of the first batch: ours {ours}, peer {peer}.'
    )


def start(args, stack: contextlib.ExitStack) -> dict[str, Side]:
  """Prepares rows and checkpoint, then both workers, one after the other."""
  logs = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
  rows = assets.cache_dir('throughput', 'sets')
  if not (rows / 'long.jsonl').exists():
    make_pairs.write(rows)
  model = assets.cache_dir('throughput') / 'SmolLM2-135M-Instruct'
  if not model.exists():
    module = f'{PACKAGE}.hf_checkpoint'
    subprocess.run([sys.executable, '-m', module, str(model)], check=True)
  our_rows, peer_rows, max_length = SETS[args.set]
  common = {
    'model': str(model),
    'batch': args.batch,
    'steps': args.warmup + args.steps,
    'max_length': max_length,
    'seed': args.seed,
  }
  options = {
    'peer': {**common, 'path': str(rows / f'{peer_rows}.jsonl')},
    'ours': {**common, 'path': str(rows / f'{our_rows}.jsonl')} | ours(args),
  }
  sides = {}
  for name, precompute in precomputed(args).items():
    print(f'preparing {name}')
    options[name]['precompute'] = precompute
    sides[name] = Side(name, options[name], logs / f'{name}.log')
    stack.callback(sides[name].close)
  return sides


def ours(args) -> dict:
  """The options that only this project's side has."""
  return {
    'remat': args.remat,
    'attention': args.attention,
    'logprob_chunk': args.logprob_chunk,
    'max_shapes': args.max_shapes,
    'share_prompt': args.share_prompt,
  }


def precomputed(args) -> dict[str, bool]:
  """Which sides have the reference's log-probabilities beforehand."""
  return {
    'peer': args.precompute in ('peer', 'both'),
    'ours': args.precompute == 'both',
  }


def parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  add = parser.add_argument
  add('--set', choices=SETS, required=True)
  add('--batch', type=int, required=True, help='pairs a step')
  add('--steps', type=int, default=8, help='measured steps of each side')
  add('--warmup', type=int, default=2, help='steps before them, not counted')
  add('--precompute', choices=('neither', 'peer', 'both'), default='neither')
  add('--seed', type=int, default=0)
  add('--out', type=pathlib.Path, default=report.RESULTS)
  add('--name', help='of the files written; the name of the set by default')
  add('--remat', default='none', help='ours: none, dots or full')
  add('--attention', default='tree', help='ours: tree or dense')
  add('--logprob_chunk', type=int, default=256, help='ours')
  add('--max_shapes', type=int, default=3, help='ours')
  share = argparse.BooleanOptionalAction
  add('--share_prompt', action=share, default=True, help='ours')
  return parser.parse_args()


def main() -> None:
  args = parse()
  sys.stdout.reconfigure(line_buffering=True)
  steal, described = machine.Steal(), machine.describe()
  with contextlib.ExitStack() as stack:
    sides = start(args, stack)
    facts = {name: side.facts for name, side in sides.items()}
    digests = facts['ours']['digests'], facts['peer']['digests']
    measured = measure(sides, args.warmup, args.steps)
  result = {
    'study': 'throughput',
    'name': args.name or args.set,
    'set': args.set,
    'batch': args.batch,
    'precomputed': precomputed(args),
    'ours': ours(args),
    'command': machine.command(f'{PACKAGE}.run'),
    'seed': args.seed,
    'machine': described,
    'steal': steal.share(),
    # Unequal where tokens merge over the border of prompt and completion.
    'pairs': len(digests[1]),
    'pairs_tokenised_alike': sum(a == b for a, b in zip(*digests)),
    'setup_s': {name: fact['setup_s'] for name, fact in facts.items()},
    'shapes': facts['ours']['shapes'],
    'compiled_shapes': facts['ours']['compiled_shapes'],
    'summary': report.summarise(measured, args.batch, args.seed),
    'steps': measured,
  }
  args.out.mkdir(parents=True, exist_ok=True)
  path = args.out / f'{result["name"]}.json'
  path.write_text(json.dumps(result, indent=1) + '\n')
  report.plot(result, path.with_suffix('.png'))
  print(report.table(result))


if __name__ == '__main__':
  main()
