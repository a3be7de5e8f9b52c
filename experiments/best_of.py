"""Files of answers for best-of-N: the best of the first N, and the data's own.

  python -m experiments.best_of --source hh --path runs/hh/data/held_helpful \\
    --completions runs/hh/small/best_of/pairs.jsonl --counts 1 4 16 64

Reads scored completions as `dpo_jax.pairs` writes them, and a data source with
their prompts. Writes beside them best_N.jsonl for each N, and chosen.jsonl with
what the data prefers, which `dpo_jax.judge` compares.
"""

import argparse
import pathlib

import numpy as np

from dpo_jax.data import records
from dpo_jax.data.sources import dialogues, rows, summaries
from dpo_jax.evals import samples

SOURCES = {'hh': dialogues.hh, 'tldr_sft': summaries.tldr_sft}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--completions', type=pathlib.Path, required=True)
  parser.add_argument('--source', choices=SOURCES, required=True)
  parser.add_argument('--path', required=True)
  parser.add_argument('--split', default='test')
  parser.add_argument('--counts', type=int, nargs='+', required=True)
  args = parser.parse_args()
  found = samples.read(args.completions)
  folder = args.completions.parent
  for n in args.counts:
    samples.write_jsonl(folder / f'best_{n}.jsonl', best(found, n))
  chosen = preferred(SOURCES[args.source](split=args.split, path=args.path))
  samples.write_jsonl(
    folder / 'chosen.jsonl',
    [{'prompt': r['prompt'], 'text': chosen[r['prompt']]} for r in found],
  )


def best(found: samples.Rows, n: int) -> samples.Rows:
  """Of each row's first n completions the one with the highest score."""
  return [
    {
      'prompt': row['prompt'],
      'text': row['completions'][int(np.argmax(row['scores'][:n]))],
    }
    for row in found
  ]


def preferred(source: rows.RecordSource) -> dict[str, str]:
  """Prompt -> the completion that the data prefers, of a source of text."""
  return {
    record.prompt: record.completions[record.examples[0][0]]
    for record in source.rows(None)
    if isinstance(record, records.Record)
  }


if __name__ == '__main__':
  main()
