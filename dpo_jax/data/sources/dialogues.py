"""Conversations: Anthropic's HH and Stanford's SHP.

Prompts are text, '\\n\\nHuman: ...\\n\\nAssistant:' turn by turn; completions
begin with a space: the DPO paper's models have no chat template.
form='messages' gives the same turns as messages, for models that have one.

What github.com/eric-mitchell/direct-preference-optimization does otherwise:

  - HH: it takes what stands behind the length of the chosen prompt for the
    rejected answer, whatever the rejected transcript has before it. Here a row
    whose transcripts differ before the last answer is dropped.
  - HH: it trains on answers that go on with further turns. Here such a row is
    dropped: the last answers would not be compared.
  - SHP: the same filter, a ratio of scores of 2 or more.
  - Both: it trains on blank answers, and on pairs of equal ones. Here such a
    row is dropped.
  - Both: it merges rows of one prompt too, but repeats answers that are equal,
    and takes the last chosen one (HH) or the best scored one (SHP) for
    supervised tuning. Here equal answers of a prompt are one, and kind='sft'
    takes the one with the most wins less losses.
  - Both: it truncates each pair by itself. Here a record is truncated as a
    whole, so that its pairs have the same prompt: see token_rules.py.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

from dpo_jax import registry
from dpo_jax.chat import errors
from dpo_jax.data.sources import files, hub_files, rows

HUMAN, ASSISTANT = '\n\nHuman:', '\n\nAssistant:'
_TURN = re.compile(f'({HUMAN}|{ASSISTANT})')
_ROLES = {HUMAN: 'user', ASSISTANT: 'assistant'}

HH_SUBSETS = (
  'harmless-base',
  'helpful-base',
  'helpful-online',
  'helpful-rejection-sampled',
)
_HH_FILES = (('{subset}/{split}.jsonl.gz',), hub_files.CONVERTED)
_SHP_FILES = (('{subset}/{split}.json',), hub_files.CONVERTED)
_SHP_COLUMNS = ('history', 'human_ref_A', 'human_ref_B', 'labels')


def hh(
  *,
  split: str,
  kind: str = 'pairs',
  form: str = 'text',
  subsets: Sequence[str] | None = None,
  path: str = 'hf://datasets/Anthropic/hh-rlhf',
) -> rows.RecordSource:
  """Y. Bai et al., arXiv:2204.05862: dialogues with a better and a worse end.

  Rows hold two transcripts, `chosen` and `rejected`. The prompt is `chosen` up
  to its last '\\n\\nAssistant:', included. Rows of a prompt are one record.

  form: a key of `FORMS`. subsets: directories of the repository, None for the
  four that were made for preferences.
  """
  shape = registry.lookup(FORMS, form, 'form of prompts')
  found = hub_files.find(
    path,
    _HH_FILES,
    split=split,
    splits=('train', 'test'),
    subsets=subsets,
    all_subsets=HH_SUBSETS,
  )
  return files.source(
    found,
    lambda row: _hh_pair(row, shape),
    kind=kind,
    columns=('chosen', 'rejected'),
    grouped=True,
  )


def shp(
  *,
  split: str,
  kind: str = 'pairs',
  form: str = 'text',
  min_ratio: float = 2.0,
  subsets: Sequence[str] | None = None,
  path: str = 'hf://datasets/stanfordnlp/SHP',
) -> rows.RecordSource:
  """K. Ethayarajh et al., ICML 2022: posts, and comments with their votes.

  Rows hold a post (`history`), two comments (`human_ref_A`, `human_ref_B`),
  their scores, and `labels`: 1 where A is preferred, 0 where B is. Rows of a
  post are one record.

  form: a key of `FORMS`. min_ratio: of the preferred comment's score to the
  other's; rows below are left out. subsets: subreddits, None for all.
  """
  shape = registry.lookup(FORMS, form, 'form of prompts')
  registry.check_at_least('min_ratio', min_ratio, 1.0)
  splits = ('train', 'validation', 'test')
  return files.source(
    hub_files.find(
      path, _SHP_FILES, split=split, splits=splits, subsets=subsets
    ),
    lambda row: _shp_pair(row, shape, min_ratio),
    kind=kind,
    columns=(*_SHP_COLUMNS, 'score_A', 'score_B'),
    grouped=True,
  )


def _hh_pair(row: Any, shape: Callable) -> dict:
  chosen, rejected = (rows.text_of(row, n) for n in ('chosen', 'rejected'))
  end = chosen.rfind(ASSISTANT) + len(ASSISTANT)
  if not chosen.startswith(HUMAN) or end < len(ASSISTANT):
    raise errors.unexpected(
      chosen,
      f'chosen is a dialogue of {HUMAN!r} and {ASSISTANT!r}',
      'bad_transcript',
    )
  prompt = chosen[:end]
  if not rejected.startswith(prompt):
    at = next(i for i, c in enumerate(prompt) if rejected[i : i + 1] != c)
    raise errors.RowError(
      'prompt_mismatch',
      f'the transcripts differ before the last answer, from character {at} on: '
      f'{errors.show(chosen[at:])}, {errors.show(rejected[at:])}',
    )
  answers = [chosen[end:], rejected[end:]]
  for name, answer in zip(('chosen', 'rejected'), answers):
    if _TURN.search(answer):
      raise errors.RowError(
        'further_turns', f'{name} goes on: {errors.show(answer)}'
      )
  _, *parts = _TURN.split(prompt)
  turns = list(zip(map(_ROLES.get, parts[::2]), parts[1::2]))[:-1]
  return pair(shape, turns, answers, text=prompt)


def _shp_pair(row: Any, shape: Callable, min_ratio: float) -> dict | None:
  label = rows.field_of(row, 'labels')
  scores = [rows.field_of(row, name) for name in ('score_A', 'score_B')]
  if label not in (0, 1) or not all(
    isinstance(score, int | float) and score > 0 for score in scores
  ):
    raise errors.unexpected(
      [label, *scores], 'labels is 0 or 1 and scores are positive'
    )
  if max(scores) < min_ratio * min(scores):
    return None
  history, a, b = (rows.text_of(row, n) for n in _SHP_COLUMNS[:3])
  return pair(shape, [('user', history)], [a, b] if label else [b, a])


def pair(
  shape: Callable, turns, answers, text: str | None = None
) -> dict[str, Any]:
  """The row of a prompt and its two answers; blank ones are unusable.

  shape: a value of `FORMS`, which takes what follows.
  """
  rows.check_not_blank(answers)
  prompt, (chosen, rejected) = shape(turns, answers, text)
  return {'prompt': prompt, 'chosen': chosen, 'rejected': rejected}


def as_text(turns, answers, text: str | None = None):
  """'\\n\\nHuman: ...\\n\\nAssistant:' and ' ...'; `text` is kept if given."""
  if text is not None:
    return text, answers
  marks = {role: mark for mark, role in _ROLES.items()}
  said = ''.join(f'{marks[role]} {content}' for role, content in turns)
  return said + ASSISTANT, [f' {answer}' for answer in answers]


def as_messages(turns, answers, text: str | None = None):
  """Messages and plain answers, without the spaces around them."""
  del text
  prompt = [
    {'role': role, 'content': content.strip()} for role, content in turns
  ]
  return prompt, [answer.strip() for answer in answers]


# (turns, answers, the prompt's own text if it has one) -> prompt, completions.
FORMS: dict[str, Callable] = {'text': as_text, 'messages': as_messages}
