"""Articles of CNN/DailyMail as prompts: other texts than TL;DR's posts.

  python -m experiments.tldr.news --articles FOLDER --out runs/tldr/news.jsonl

FOLDER is laid out like hf://datasets/abisee/cnn_dailymail (3.0.0). A prompt is
an article as a post, which ends with 'TL;DR:'; its completion is what the paper
wrote as highlights.
"""

import argparse
import pathlib

import pyarrow.parquet

from dpo_jax import assets
from dpo_jax.data.sources import summaries
from dpo_jax.evals import samples

_FILES = '3.0.0/test-*.parquet'


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--articles', required=True, help='URI of a folder')
  parser.add_argument('--out', type=pathlib.Path, required=True)
  args = parser.parse_args()
  samples.write_jsonl(args.out, read(assets.resolve(args.articles)))


def read(folder: pathlib.Path) -> samples.Rows:
  """Rows for kind='sft'."""
  paths = sorted(folder.glob(_FILES))
  if not paths:
    raise ValueError(
      f'{str(folder)!r} has no {_FILES}. Give a download of '
      'hf://datasets/abisee/cnn_dailymail as --articles.'
    )
  return [
    {
      'prompt': f'POST: {row["article"].strip()}\n{summaries.ENDING}',
      'completion': f' {" ".join(row["highlights"].split())}',
    }
    for path in paths
    for row in pyarrow.parquet.read_table(path).to_pylist()
  ]


if __name__ == '__main__':
  main()
