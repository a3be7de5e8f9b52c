"""Compiles the paper's steps for TPU slices, and writes the table of them.

  python -m experiments.pods.run
  python -m experiments.pods.run --only gpt2-large --family v5e

A compile that is in results/ is not made again.
"""

import argparse
import datetime
import importlib
import importlib.metadata
import json
import pathlib
import subprocess
import sys
import time

import jax

from dpo_jax import plan
from dpo_jax.models import presets
from dpo_jax.training import compiled, topologies

HERE = pathlib.Path(__file__).parent
RESULTS = HERE / 'results'
FAMILIES = ('v5e', 'v5p')
# (shape, page of values): the paper's six, and Llama 3 with those of HH.
STEPS = [
  ('gpt2-large', 'imdb_sft'),
  ('gpt2-large', 'imdb_dpo'),
  ('pythia-2.8b', 'hh_sft'),
  ('pythia-2.8b', 'hh_dpo'),
  ('gpt-j-6b', 'tldr_sft'),
  ('gpt-j-6b', 'tldr_dpo'),
  ('Llama-3-8B', 'hh_sft'),
  ('Llama-3-8B', 'hh_dpo'),
]


def file_of(shape: str, page: str, topology: str) -> pathlib.Path:
  """Where the result of a compile is."""
  return RESULTS / f'{shape}.{page}.{topology.replace(":", "_")}.json'


def find(shape: str, page: str, family: str) -> None:
  """Compiles for the slices of a family until one fits."""
  for topology in topologies.slices(family):
    file = file_of(shape, page, topology)
    if not file.exists():
      file.write_text(json.dumps(measure(shape, page, topology), indent=1))
      jax.clear_caches()
      (HERE / 'table.md').write_text(table())
    if json.loads(file.read_text())['failure'] is None:
      return


def measure(shape: str, page: str, topology: str) -> dict:
  """One compile, as JSON."""
  config = importlib.import_module(f'configs.{page}').get_config().to_dict()
  began = time.monotonic()
  chips = topologies.devices(topology)
  made = plan.make(config, presets.get(shape), chips)
  print(plan.show(made, f'{shape}, {page}, {topology}'), flush=True)
  memory = made.memory and {**made.memory._asdict(), 'total': made.memory.total}
  changed_files = _git('status', '--porcelain', '--', 'dpo_jax', 'configs')
  return {
    'model': shape,
    'page': page,
    'topology': topology,
    **made._asdict(),
    'memory': memory,
    'collectives': [c._asdict() for c in made.collectives],
    'compiled_in_s': round(time.monotonic() - began, 1),
    'versions': {
      name: importlib.metadata.version(name) for name in ('jax', 'libtpu')
    },
    'commit': _git('rev-parse', 'HEAD') + ('+' if changed_files else ''),
    'date': datetime.datetime.now(datetime.UTC).isoformat(timespec='minutes'),
    'command': 'python -m experiments.pods.run ' + ' '.join(sys.argv[1:]),
  }


def _git(*args: str) -> str:
  command = ('git', '-C', str(HERE), *args)
  return subprocess.run(command, capture_output=True, text=True).stdout.strip()


HEAD = (
  'model',
  'page',
  'slice',
  'chips',
  'state, GiB',
  'all, GiB',
  'of, GiB',
  'accumulation',
  'model FLOPs',
  'computed FLOPs',
  'gathered, GiB',
  'scattered, GiB',
  'reduced, GiB',
  'too small',
)


def table() -> str:
  """The results as a table, a row for each step and family."""
  lines = [' | '.join(HEAD), ' | '.join(['---'] * len(HEAD))]
  for shape, page in STEPS:
    for family in FAMILIES:
      files = [file_of(shape, page, t) for t in topologies.slices(family)]
      found = [json.loads(f.read_text()) for f in files if f.exists()]
      if found:
        lines.append(' | '.join(_row(found)))
  return '\n'.join(f'| {line} |' for line in lines) + '\n'


def _row(found: list[dict]) -> list[str]:
  last = found[-1]
  small = [_too_small(f) for f in found if f['failure'] is not None]
  hbm = topologies.HBM[last['device']]
  fits = last['failure'] is None
  return [
    last['model'],
    last['page'],
    last['topology'] if fits else 'not known yet',
    str(last['chips']),
    _gib(last['state']),
    _gib(last['memory']['total']) if fits else '',
    _gib(hbm),
    str(last['accumulation_steps']),
    f'{last["model_flops"]:.2e}',
    f'{last["flops"]:.2e}',
    *(_sent(last, k) for k in ('all-gather', 'reduce-scatter', 'all-reduce')),
    ', '.join(small),
  ]


def _too_small(result: dict) -> str:
  size = result['topology'].partition(':')[2]
  return f'{size} ({plan.reason(result["failure"])})'


def _sent(result: dict, kind: str) -> str:
  known = [compiled.Collective(**c) for c in result['collectives']]
  return _gib(sum(c.bytes * (c.trips or 1) for c in known if c.kind == kind))


def _gib(size: float) -> str:
  return f'{size / 2**30:.2f}'.rstrip('0').rstrip('.') if size else '0'


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--only', choices=sorted({s for s, _ in STEPS}))
  parser.add_argument('--family', choices=FAMILIES)
  args = parser.parse_args()
  jax.config.update('jax_platforms', 'cpu')
  RESULTS.mkdir(exist_ok=True)
  for shape, page in STEPS:
    for family in FAMILIES:
      if args.only in (None, shape) and args.family in (None, family):
        find(shape, page, family)
  (HERE / 'table.md').write_text(table())


if __name__ == '__main__':
  main()
