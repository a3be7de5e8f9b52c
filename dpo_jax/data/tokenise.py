"""Records of text to records of tokens, by the contract of contract.py."""

import array
import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import tqdm

from dpo_jax.data import contract, drops, encoding, records, segments, store

Item = records.Record | drops.RowError | drops.Elsewhere

# Records encoded at a time: enough to keep every core of the encoder busy.
CHUNK = 1024


def tokenise(
  items: Iterable[Item],
  tokenizer: Any,
  rules: contract.Contract,
  mark: segments.Mark | None = None,
) -> tuple[store.TokenRecords, drops.DropReport]:
  """Tokens of all usable records, in their order, and what was dropped.

  tokenizer: as in `encoding.encode`.
  mark: which tokens go to extras['corrected'], f32[tokens], as 1; None for no
  such extra.
  Raises ValueError if examples do not all compare equally many completions.
  """
  report = drops.DropReport()
  builder = store.Builder()
  corrected = array.array('f')
  bar = tqdm.tqdm(items, desc='tokenising', unit=' rows', disable=None)
  for chunk in _chunks(iter(bar)):
    good = [item for item in chunk if isinstance(item, records.Record)]
    encoded = iter(encoding.encode(good, tokenizer, tokens=rules.recognises))
    for item in chunk:
      if isinstance(item, drops.Elsewhere):
        report.elsewhere += item.count
        continue
      report.read += item.weight
      if isinstance(item, drops.RowError):
        report.add(item)
        continue
      found = next(encoded)
      try:
        if isinstance(found, drops.RowError):
          raise found
        report.note(item, found.literal)
        if mark is None and item.spans:
          report.unread['spans'] += item.weight
        kept = contract.fit(item, found, rules)
        answers = [found.completions[place] for place in kept.places]
        marks = mark(kept.record, answers) if mark else None
      except drops.RowError as e:
        e.file, e.row = item.file, item.row
        e.weight = item.weight - sum(x.weight for x in item.lost)
        report.add(*item.lost, e)
        continue
      report.add(*kept.record.lost)
      builder.add(kept.record, kept.prompt, kept.completions, found.scored)
      if marks is not None:
        corrected.extend(segments.extend(marks, kept.prompt, kept.completions))
  tokens = builder.finish()
  if mark:
    extras = {'corrected': np.asarray(corrected, np.float32)}
    tokens = dataclasses.replace(tokens, extras=extras)
  return tokens, report


def _chunks(items: Iterator[Item]) -> Iterator[list[Item]]:
  while chunk := list(itertools.islice(items, CHUNK)):
    yield chunk
