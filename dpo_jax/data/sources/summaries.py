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

from dpo_jax import registry
from dpo_jax.chat import errors
from dpo_jax.data.sources import files, hub_files, rows

ENDING = 'TL;DR:'
_FILES = (('data/{split}-*.parquet',), hub_files.CONVERTED)


def tldr_sft(
  *,
  split: str,
  kind: str = 'sft',
  path: str = 'hf://datasets/CarperAI/openai_summarize_tldr',
) -> rows.RecordSource:
  """Posts and what their authors wrote as a summary: `prompt` and `label`.

  split: 'train', 'valid' or 'test'. kind: 'sft', or 'prompts' for posts alone.
  """
  registry.lookup({'sft': 0, 'prompts': 0}, kind, 'kind of tldr_sft')
  splits = ('train', 'valid', 'test')
  return files.source(
    hub_files.find(path, _FILES, split=split, splits=splits),
    lambda row: {'prompt': _post(row), 'completion': _summary(row, 'label')},
    kind=kind,
    columns=('prompt', 'label'),
  )


def tldr_comparisons(
  *,
  split: str,
  kind: str = 'pairs',
  path: str = 'hf://datasets/CarperAI/openai_summarize_comparisons',
) -> rows.RecordSource:
  """Posts and two summaries each: `prompt`, `chosen`, `rejected`.

  split: 'train', 'test', 'valid1' or 'valid2'. Rows of a post are one record,
  in which equal summaries are one.
  """
  splits = ('train', 'test', 'valid1', 'valid2')
  return files.source(
    hub_files.find(path, _FILES, split=split, splits=splits),
    _compared,
    kind=kind,
    columns=('prompt', 'chosen', 'rejected'),
    grouped=True,
  )


def _compared(row: Any) -> dict:
  pair = {name: _summary(row, name) for name in ('chosen', 'rejected')}
  return {'prompt': _post(row), **pair}


def _post(row: Any) -> str:
  post = rows.text_of(row, 'prompt').strip().removesuffix(ENDING).rstrip()
  if not post:
    raise errors.RowError('empty_prompt', 'the post is blank')
  return f'{post}\n{ENDING}'


def _summary(row: Any, name: str) -> str:
  summary = rows.text_of(row, name).strip().removeprefix(ENDING).strip()
  if not summary:
    raise errors.RowError('empty_completion', 'a summary is blank')
  return f' {summary}'
