"""UltraFeedback: instructions, and answers of models judged by a model.

G. Cui et al., arXiv:2310.01377. Prompts are messages, for models with a chat
template. The reference code of the DPO paper does not load it.
"""

from typing import Any

from dpo_jax.chat import errors
from dpo_jax.data.sources import files, hub_files, rows

_PAIRS = (
  ('data/{split}_prefs-*.parquet',),
  ('default/{split}_prefs/*.parquet',),
)
_RATINGS = (('*.jsonl',), hub_files.CONVERTED)


def ultrafeedback(
  *,
  split: str,
  kind: str = 'pairs',
  path: str = 'hf://datasets/HuggingFaceH4/ultrafeedback_binarized',
) -> rows.RecordSource:
  """Conversational pairs: `chosen` and `rejected`, lists of messages.

  Only their last messages may differ; `prompt`, which repeats the first one, is
  not read. split: 'train' or 'test', the files train_prefs and test_prefs. Rows
  of a conversation are one record.
  """
  return files.source(
    hub_files.find(path, _PAIRS, split=split, splits=('train', 'test')),
    _pair,
    kind=kind,
    columns=('chosen', 'rejected'),
    grouped=True,
  )


def ultrafeedback_ratings(
  *,
  split: str = 'all',
  kind: str = 'pairs',
  held_out_fraction: float = 0.1,
  path: str = 'hf://datasets/openbmb/UltraFeedback',
) -> rows.RecordSource:
  """Four answers to each `instruction`, with their scores.

  An element of `completions` has the answer, `response`, and `overall_score`;
  all pairs of different scores are preferences, and rows without any are left
  out. split: by the instructions, see `rows.in_split`.
  """
  return files.source(
    hub_files.find(path, _RATINGS, split='train'),
    lambda row: _rated(row, kind),
    kind=kind,
    columns=('instruction', 'completions'),
    split=split,
    held_out_fraction=held_out_fraction,
  )


def _pair(row: Any) -> dict:
  chosen, rejected = (_turns(row, name) for name in ('chosen', 'rejected'))
  if chosen[:-1] != rejected[:-1]:
    raise errors.RowError(
      'different_context', 'the answers differ before their last message'
    )
  return {
    'prompt': chosen[:-1],
    'chosen': rows.text_of(chosen[-1], 'content'),
    'rejected': rows.text_of(rejected[-1], 'content'),
  }


def _turns(row: Any, name: str) -> list:
  turns = rows.field_of(row, name)
  if not isinstance(turns, list) or len(turns) < 2:
    expected = f'{name} is a list of a prompt and an answer'
    raise errors.unexpected(turns, expected, 'bad_messages')
  if rows.field_of(turns[-1], 'role') != 'assistant':
    raise errors.RowError(
      'bad_messages', f"{name} does not end with role 'assistant'"
    )
  return turns


def _rated(row: Any, kind: str) -> dict | None:
  given = rows.list_of(row, 'completions')
  instruction = rows.text_of(row, 'instruction')
  scores = [rows.field_of(x, 'overall_score') for x in given]
  if rows.all_tied(scores, kind):
    return None
  return {
    'prompt': [{'role': 'user', 'content': instruction}],
    'completions': [rows.text_of(x, 'response') for x in given],
    'scores': scores,
  }
