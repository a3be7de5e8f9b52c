"""TL;DR: Reddit posts, their summaries, and which of two is better.

N. Stiennon et al., arXiv:2009.01325, as CarperAI put it on the hub. A prompt is
a post,

  SUBREDDIT: r/...
  TITLE: ...
  POST: ...
  TL;DR:

and a completion is a summary after one space. Posts that do not end with
'TL;DR:' get it, and summaries that begin with it (those of the comparisons)
lose it: supervised tuning and comparisons then have prompts of one form, the
one that the policy is asked with.

The DPO paper trains on these, its reference code does not load them.
"""

from typing import Any

from dpo_jax.data import drops, records, rows
from dpo_jax.data.sources import files, layouts, reading

ENDING = 'TL;DR:'
_LAYOUTS = (('data/{split}-*.parquet',), layouts.CONVERTED)


def tldr_sft(
  *, split: str, path: str = 'hf://datasets/CarperAI/openai_summarize_tldr'
) -> records.Source:
  """Posts and what their authors wrote as a summary: `prompt` and `label`.

  split: 'train', 'valid' or 'test'. Every record is of kind 'sft'.
  """
  reading.check_split(split, ('train', 'valid', 'test'))
  return reading.source(
    layouts.find(path, _LAYOUTS, split=split),
    _written,
    kind='sft',
    columns=files.Columns(('prompt', 'label')),
  )


def tldr_comparisons(
  *,
  split: str,
  kind: str = 'pairs',
  path: str = 'hf://datasets/CarperAI/openai_summarize_comparisons',
) -> records.Source:
  """Posts and two summaries each: `prompt`, `chosen`, `rejected`.

  split: 'train', 'test', 'valid1' or 'valid2'. Rows of a post are one record,
  in which equal summaries are one.
  """
  reading.check_split(split, ('train', 'test', 'valid1', 'valid2'))
  return reading.source(
    layouts.find(path, _LAYOUTS, split=split),
    _compared,
    kind=kind,
    columns=files.Columns(('prompt', 'chosen', 'rejected')),
    grouped=True,
  )


def _written(row: Any) -> dict:
  return {
    'prompt': _post(rows.text_of(row, 'prompt')),
    'completion': _summary(rows.text_of(row, 'label')),
  }


def _compared(row: Any) -> dict:
  pair = {n: _summary(rows.text_of(row, n)) for n in ('chosen', 'rejected')}
  return {'prompt': _post(rows.text_of(row, 'prompt')), **pair}


def _post(text: str) -> str:
  post = text.strip().removesuffix(ENDING).rstrip()
  if not post:
    raise drops.RowError('empty_prompt', 'the post is blank')
  return f'{post}\n{ENDING}'


def _summary(text: str) -> str:
  summary = text.strip().removeprefix(ENDING).strip()
  if not summary:
    raise drops.RowError('empty_completion', 'a summary is blank')
  return f' {summary}'
