"""What packing costs in attention: python -m experiments.throughput.attention.

The same trees, in one row or in a row each, through both backends of
models/attention.py, with SmolLM2's heads: 9 queries and 3 keys of 64. A tree of
n tokens is a prompt of n / 2 and two completions of n / 4. Every layout gives
every token the same output and gradients, which is checked first.
"""

import argparse
import json
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax import types
from dpo_jax.data import batches, records, store
from dpo_jax.models import attention, presets
from experiments.throughput import machine, report

MODEL = presets.get('SmolLM2-135M')
CASES = ((352, 352, 352, 352), (640, 352, 224, 128), (608, 96, 96, 96))
# One packed row, or a row for each tree, by backend; ratios are to the first.
SIDES = {
  'a row each, tree': (4, 'tree'),
  'packed, tree': (1, 'tree'),
  'a row each, dense': (4, 'dense'),
  'packed, dense': (1, 'dense'),
}


def batch_of(trees: tuple[int, ...], rows: int) -> types.Batch:
  """The trees, packed; token i of all of them has the id i, from 1."""
  builder, ids = store.Builder(), iter(range(1, sum(trees) + 1))
  for length in trees:
    sizes = (length // 2, length // 4, length // 4)
    prompt, *completions = ([next(ids) for _ in range(n)] for n in sizes)
    record = records.Record('', ('', ''), ((0, 1),))
    builder.add(record, prompt, completions)
  placement = batches.Placement(
    records=builder.finish(),
    num_batches=1,
    rows=rows,
    seed=None,
    batch_size=len(trees),
  )
  (packed,) = batches.plan_together([placement], max_shapes=1)
  return packed[0]


def make_side(trees: tuple[int, ...], rows: int, backend: str):
  """(run, by_token, positions) of one layout and backend.

  run() gives the output and the gradients of q, k and v at every position;
  by_token(them) puts each in the order of the tokens.
  """
  batch = batch_of(trees, rows)
  tokens = np.asarray(batch.tokens_RxL)
  prepare, attend = attention.BACKENDS[backend]
  view = jax.jit(prepare)(batch.layout)
  rng, heads = np.random.default_rng(0), MODEL.num_heads
  q, k, v, cotangent = (
    jnp.asarray(
      rng.standard_normal((sum(trees) + 1, n, MODEL.head_dim), np.float32)
    )[tokens]
    for n in (heads, MODEL.num_kv_heads, MODEL.num_kv_heads, heads)
  )
  # Nothing flows back from padding, as nothing reads it.
  cotangent = jnp.where((tokens > 0)[..., None, None], cotangent, 0)

  @jax.jit
  def forward_backward(q, k, v, view, cotangent):
    def fn(q, k, v):
      return attend(q, k, v, view, MODEL.head_dim**-0.5)

    out, vjp = jax.vjp(fn, q, k, v)
    return out, *vjp(cotangent)

  real = tokens > 0
  order = np.argsort(tokens[real])

  def run():
    return jax.block_until_ready(forward_backward(q, k, v, view, cotangent))

  def by_token(arrays):
    return [np.asarray(x)[real][order] for x in arrays]

  return run, by_token, tokens.size


def time_case(trees, rounds: int, repeats: int, seed: int) -> dict:
  """CPU seconds of every side in every round, the order shuffled each time."""
  sides = {name: make_side(trees, *side) for name, side in SIDES.items()}
  expected = None
  for name, (run, by_token, _) in sides.items():
    got = by_token(run())
    expected = expected or got
    for a, b in zip(got, expected):
      np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4, err_msg=name)
  rng = np.random.default_rng(seed)
  cpu = {name: [] for name in sides}
  for _ in range(rounds):
    for name in rng.permutation(list(sides)):
      began = time.process_time()
      for _ in range(repeats):
        sides[name][0]()
      cpu[name].append(time.process_time() - began)
  first = next(iter(cpu.values()))
  return {
    'trees': list(trees),
    'sides': {
      name: {
        'positions': positions,
        'cpu_s': float(np.median(cpu[name])),
        'ratio': report.ratio(cpu[name], first, seed),
        'rounds': cpu[name],
      }
      for name, (_, _, positions) in sides.items()
    },
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  add = parser.add_argument
  add('--rounds', type=int, default=20)
  add('--repeats', type=int, default=MODEL.num_layers, help='in a round')
  add('--seed', type=int, default=0)
  add('--out', type=pathlib.Path, default=report.RESULTS)
  args = parser.parse_args()
  steal, described = machine.Steal(), machine.describe()
  cases = [
    time_case(trees, args.rounds, args.repeats, args.seed) for trees in CASES
  ]
  result = {
    'study': 'attention',
    'rounds': args.rounds,
    'repeats': args.repeats,
    'seed': args.seed,
    'command': machine.command('experiments.throughput.attention'),
    'machine': described,
    'steal': steal.share(),
    'cases': cases,
  }
  args.out.mkdir(parents=True, exist_ok=True)
  (args.out / 'attention.json').write_text(json.dumps(result, indent=1) + '\n')
  print(report.attention_table(result))


if __name__ == '__main__':
  main()
