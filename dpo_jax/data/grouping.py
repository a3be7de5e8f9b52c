"""Pairs of one prompt as one record: the prompt is computed once."""

import json
from collections.abc import Iterator

from absl import logging

from dpo_jax.data import drops, messages, rows


def by_prompt(pairs: Iterator[rows.Item]) -> Iterator[rows.Item]:
  """Rows {'prompt', 'chosen', 'rejected'}, those of equal prompts as one row.

  The result is {'prompt', 'completions', 'preferences'}, at the place of the
  prompt's first row: every different answer once, and a preference for every
  pair, in their order. A prompt with one pair keeps its row. Answers are text.
  Unusable rows are given as they are met, those with equal answers included. A
  merged row has the weight of its pairs, which a drop report counts. All pairs
  are read before the first row is given: the texts of a split are in memory at
  once (0.3 GB for HH).
  """
  groups: dict[str, list[rows.Row]] = {}
  count = 0
  for pair in pairs:
    if isinstance(pair, rows.Row) and _is_tie(pair):
      answer = messages.show(pair.value['chosen'])
      detail = f'chosen and rejected are equal: {answer}'
      pair = drops.RowError(
        'identical_completions', detail, pair.file, pair.line
      )
    if isinstance(pair, drops.RowError):
      yield pair
      continue
    count += 1
    prompt = pair.value['prompt']
    key = prompt if isinstance(prompt, str) else json.dumps(prompt)
    groups.setdefault(key, []).append(pair)
  logging.info('%d pairs of %d prompts.', count, len(groups))
  for same in groups.values():
    yield same[0] if len(same) == 1 else _merged(same)


def _is_tie(pair: rows.Row) -> bool:
  return pair.value['chosen'] == pair.value['rejected']


def _merged(same: list[rows.Row]) -> rows.Row:
  places: dict[str, int] = {}
  preferences = [
    [
      places.setdefault(pair.value[name], len(places))
      for name in ('chosen', 'rejected')
    ]
    for pair in same
  ]
  value = {
    'prompt': same[0].value['prompt'],
    'completions': list(places),
    'preferences': preferences,
  }
  return same[0]._replace(value=value, weight=len(same))
