"""What metrics.jsonl of a run says of its held-out examples."""

import pathlib
from collections.abc import Collection

from dpo_jax.training import metrics

DIGITS = 4


def held_out(
  run: pathlib.Path, names: Collection[str]
) -> list[dict[str, float]]:
  """Each evaluation's metrics of these names; [] where there is none."""
  path = run / 'metrics.jsonl'
  rows = metrics.read_jsonl(path) if path.exists() else []
  found = []
  for row in rows:
    if 'eval/loss' in row:
      kept = {
        name: round(row[f'eval/{name}'], DIGITS)
        for name in names
        if f'eval/{name}' in row
      }
      found.append({'step': row['step'], **kept})
  return found
