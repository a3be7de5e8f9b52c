"""Kills runs at random moments, reruns them, compares with undisturbed ones.

python -m experiments.crashes.run --kills 50 --seed 0
"""

import argparse
import collections
import functools
import json
import pathlib
import random
import tempfile
import time

from experiments.crashes import runs
from experiments.throughput import machine
from tests import tiny

RESULTS = pathlib.Path(__file__).parent / 'results'
# A run that was killed so often may finish, so that there are several.
KILLS_A_RUN = 8


def undisturbed(root: pathlib.Path, method: str, shared: dict):
  """(its place, the seconds of a run whose programs are compiled).

  The first run compiles, the second takes what it compiled: they must agree,
  or no other comparison would mean anything.
  """
  places = [
    runs.Place(method, root=root / f'{method}-whole-{i}', **shared)
    for i in range(2)
  ]
  seconds = [runs.whole(place) for place in places]
  found = runs.differences(*(place.workdir for place in places))
  if found:
    raise SystemExit(f'Two undisturbed runs of {method} differ: {found}')
  print(f'{method} undisturbed: {seconds[0]:.1f} s, then {seconds[1]:.1f} s')
  return places[0], seconds[1]


def kill(root: pathlib.Path, methods, shared: dict, args):
  """(killed processes, finished runs) until there were so many kills."""
  rng = random.Random(args.seed)
  wholes = {name: undisturbed(root, name, shared) for name in methods}
  struck, finished = [], []
  while len(struck) < args.kills:
    method = methods[len(finished) % len(methods)]
    place = runs.Place(method, root=root / f'killed-{len(finished)}', **shared)
    expected, seconds = wholes[method]
    left = min(args.kills - len(struck), KILLS_A_RUN)
    choose = functools.partial(runs.any_time, rng, seconds)
    if args.writes_only:
      choose = functools.partial(runs.while_writing, rng)
    new = runs.under_fire(place, choose, kills=left)
    found = runs.differences(expected.workdir, place.workdir)
    struck += new
    finished.append({'method': method, 'kills': len(new), 'differences': found})
    verdict = f'differs in {found}' if found else 'bit-identical'
    print(f'{method}: {len(new)} kills, {verdict}; {len(struck)} in all')
  return struck, finished


def parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  add = parser.add_argument
  add('--kills', type=int, default=50)
  add('--seed', type=int, default=0)
  add('--method', default='dpo,sft', help='names that page.py knows')
  add('--writes_only', action='store_true', help='kill only during writes')
  add('--out', type=pathlib.Path, default=RESULTS / 'kills.json')
  return parser.parse_args()


def main() -> None:
  args = parse()
  began, described = time.monotonic(), machine.describe()
  methods = args.method.split(',')
  with tempfile.TemporaryDirectory() as folder:
    root = pathlib.Path(folder)
    tiny.write(root / 'data', num_train=5000)
    shared = dict(data=root / 'data', jit=root / 'jit')
    struck, finished = kill(root, methods, shared, args)
  different = [run for run in finished if run['differences']]
  result = {
    'study': 'crashes',
    'command': machine.command('experiments.crashes.run'),
    'seed': args.seed,
    'machine': described,
    'minutes': round((time.monotonic() - began) / 60, 1),
    'kills': len(struck),
    'signals': collections.Counter(k['signal'] for k in struck),
    'phases': collections.Counter(k['phase'] for k in struck),
    'last_write': collections.Counter(
      k['last_write'] for k in struck if k['last_write']
    ),
    'left': collections.Counter(x for k in struck for x in k['left']),
    'runs': finished,
    'runs_that_differ': len(different),
    'each_kill': struck,
  }
  args.out.parent.mkdir(parents=True, exist_ok=True)
  args.out.write_text(json.dumps(result, indent=1) + '\n')
  for name in ('signals', 'phases', 'last_write', 'left'):
    print(name, dict(result[name]))
  if different:
    raise SystemExit(f'{len(different)} of {len(finished)} runs differ.')
  print(f'{len(finished)} runs, {len(struck)} kills: all bit-identical.')


if __name__ == '__main__':
  main()
