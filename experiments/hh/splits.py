"""Dialogues for the study of Anthropic-HH, in parts that share no first turn.

  python -m experiments.hh.splits --dialogues FOLDER --out runs/hh/data

FOLDER has helpful-base and harmless-base as hf://datasets/Anthropic/hh-rlhf
has them. Without train files, the test files are all there is. Written are
folders in the layout of the hub's conversion, which source='hh' reads:

  a             what policies and their reward model learn from
  b             what the judge learns from
  held_out      a fifth of the dialogues, or those of the test files
  held_helpful, held_harmless   of these, dialogues of one human turn
  held_multi                    and of several
  a_0, a_50, a_100   as many dialogues of a each, of which this percentage is of
                     harmless-base
  a_multi            dialogues of a of several human turns

All dialogues with the same first human turn are in one part.
"""

import argparse
import gzip
import hashlib
import json
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import pyarrow
import pyarrow.parquet

from dpo_jax import assets
from dpo_jax.data.sources import dialogues

SUBSETS = ('helpful-base', 'harmless-base')
HELD_OUT = 0.2


class Dialogue(NamedTuple):
  """A row of the repository, and its subset."""

  chosen: str
  rejected: str
  subset: str

  @property
  def first_turn(self) -> str:
    """What the human says first."""
    return self.chosen.split(dialogues.ASSISTANT)[0]

  @property
  def single(self) -> bool:
    """Whether the human speaks once."""
    return self.chosen.count(dialogues.HUMAN) == 1


Dialogues = list[Dialogue]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--dialogues', required=True, help='URI of a folder')
  parser.add_argument('--out', type=pathlib.Path, required=True)
  args = parser.parse_args()
  folder = assets.resolve(args.dialogues)
  for name, found in parts(read(folder, 'test'), read(folder, 'train')).items():
    write(args.out / name, found)
    print(f'{name}: {len(found)} dialogues')


def read(folder: pathlib.Path, split: str) -> Dialogues:
  """Those of both subsets; ValueError where one has no test file."""
  found = []
  for subset in SUBSETS:
    path = folder / subset / f'{split}.jsonl.gz'
    if path.exists():
      with gzip.open(path, 'rt', encoding='utf-8') as lines:
        rows = [json.loads(line) for line in lines]
      found += [Dialogue(r['chosen'], r['rejected'], subset) for r in rows]
    elif split == 'test':
      raise ValueError(
        f'{str(folder)!r} has no {subset}/{path.name}. Give a download of '
        'hf://datasets/Anthropic/hh-rlhf as --dialogues.'
      )
  return found


def parts(test: Dialogues, train: Dialogues) -> dict[str, Dialogues]:
  """All parts; train: [] if there is none."""
  if train:
    held = {d.first_turn for d in test}
    learned = [d for d in train if d.first_turn not in held]
    a, b = split(learned, (0.5, 1.0))
    held_out = test
  else:
    held_out, a, b = split(test, (HELD_OUT, (1 + HELD_OUT) / 2, 1.0))
  singles = [d for d in held_out if d.single]
  helpful, harmless = SUBSETS
  return {
    'a': a,
    'b': b,
    'held_out': held_out,
    'held_helpful': [d for d in singles if d.subset == helpful],
    'held_harmless': [d for d in singles if d.subset == harmless],
    'held_multi': [d for d in held_out if not d.single],
    'a_0': mixture(a, 0.0),
    'a_50': mixture(a, 0.5),
    'a_100': mixture(a, 1.0),
    'a_multi': [d for d in a if not d.single],
  }


def split(found: Dialogues, ends: Sequence[float]) -> list[Dialogues]:
  """Parts by a hash of the first turn; ends: of each in [0, 1]."""
  out = [[] for _ in ends]
  for dialogue in found:
    digest = hashlib.sha256(dialogue.first_turn.encode()).digest()
    share = int.from_bytes(digest[:8], 'big') / 2**64
    out[next(i for i, end in enumerate(ends) if share < end)].append(dialogue)
  return out


def mixture(found: Dialogues, share: float) -> Dialogues:
  """This share of harmless-base, as many as the smaller subset has in all."""
  by_subset = [[d for d in found if d.subset == subset] for subset in SUBSETS]
  total = min(map(len, by_subset))
  count = round(share * total)
  helpful, harmless = by_subset
  return helpful[: total - count] + harmless[:count]


def write(folder: pathlib.Path, found: Dialogues) -> None:
  """Writes a part; held-out ones are the split 'test'."""
  name = 'test' if folder.name.startswith('held') else 'train'
  path = folder / 'default' / name / '0000.parquet'
  table = pyarrow.table(
    {key: [getattr(d, key) for d in found] for key in Dialogue._fields}
  )
  with assets.atomic_path(path) as temp:
    pyarrow.parquet.write_table(table, temp)


def read_part(folder: pathlib.Path) -> Dialogues:
  """What `write` wrote."""
  (path,) = folder.glob('default/*/0000.parquet')
  rows = pyarrow.parquet.read_table(path).to_pylist()
  return [Dialogue(**row) for row in rows]


if __name__ == '__main__':
  main()
