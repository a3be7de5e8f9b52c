"""Files of answers for best-of-N: the best of the first N, and the chosen ones.

  python -m experiments.hh.best_of --scale small

Reads the scored completions of runs/hh/SCALE/best_of/pairs.jsonl and the
held-out dialogues; writes beside them best_N.jsonl for N = 1, 4, 16 and 64, and
chosen.jsonl with what the data prefers, for `dpo_jax.judge`.
"""

import argparse
import pathlib

import numpy as np

from dpo_jax.data.sources import dialogues
from dpo_jax.evals import samples
from experiments.hh import pages, splits

COUNTS = (1, 4, 16, 64)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--scale', choices=pages.SCALES, default='small')
  scale = parser.parse_args().scale
  folder = pathlib.Path(pages.folder(scale, 'best_of'))
  rows = samples.read(folder / 'pairs.jsonl')
  for n in COUNTS:
    samples.write_jsonl(folder / f'best_{n}.jsonl', best(rows, n))
  answers = chosen(pathlib.Path(pages.part('held_helpful')))
  # A prompt that is there several times has several; the first is as good.
  found = [{'prompt': r['prompt'], 'text': answers[r['prompt']]} for r in rows]
  samples.write_jsonl(folder / 'chosen.jsonl', found)


def best(rows: samples.Rows, n: int) -> samples.Rows:
  """Of each row's first n completions the one with the highest score."""
  return [
    {
      'prompt': row['prompt'],
      'text': row['completions'][int(np.argmax(row['scores'][:n]))],
    }
    for row in rows
  ]


def chosen(folder: pathlib.Path) -> dict[str, str]:
  """Prompt -> the preferred answer, of the dialogues of a part."""
  found = {}
  for dialogue in splits.read_part(folder):
    before, mark, answer = dialogue.chosen.rpartition(dialogues.ASSISTANT)
    found.setdefault(before + mark, answer)
  return found


if __name__ == '__main__':
  main()
