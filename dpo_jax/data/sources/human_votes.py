"""Answers of models that people compared: QA-Feedback and PandaLM's test set.

The reference code of the DPO paper loads neither.
"""

import collections
import itertools
from typing import Any

from dpo_jax import assets, registry
from dpo_jax.chat import errors
from dpo_jax.data.sources import dialogues, files, row_formats, rows

_NUM_PREDICTIONS = 4
_FEEDBACK = ('question', 'passages', 'preference', 'feedback')
_VOTES = ('annotator1', 'annotator2', 'annotator3')


def finegrained_rlhf(
  *,
  path: str,
  kind: str = 'pairs',
  compare: str = 'predictions',
  form: str = 'text',
  split: str = 'all',
  held_out_fraction: float = 0.1,
) -> rows.RecordSource:
  """QA-Feedback (Z. Wu et al., arXiv:2306.01693): questions on passages.

  path: a file of github.com/allenai/FineGrainedRLHF, such as
  tasks/qa_feedback/data/dev_feedback.json. A row has four answers,
  'prediction 1' to 'prediction 4', and six preferences, one for each two of
  them, in the order of the pairs (1, 2), (1, 3), ..., (3, 4): 1 for the first,
  2 for the second, 0 for neither.

  compare: 'predictions' by these preferences, or 'correction': a person's
  correction of the first prediction, against it; rows that are not corrected
  are left out. form: a key of `dialogues.FORMS`. split: by the questions, see
  `rows.in_split`.
  """
  shape = registry.lookup(dialogues.FORMS, form, 'form of prompts')
  judge = registry.lookup(COMPARE, compare, 'compare')

  def rule(row):
    turns = [('user', _question(row))]
    found = judge(row, kind)
    if found is None:
      return None
    answers, preferences = found
    rows.check_not_blank(answers)
    prompt, completions = shape(turns, answers)
    return {
      'prompt': prompt,
      'completions': completions,
      'preferences': preferences,
    }

  return files.source(
    assets.find_files(path, row_formats.SUFFIXES),
    rule,
    kind=kind,
    columns=_FEEDBACK,
    split=split,
    held_out_fraction=held_out_fraction,
  )


def pandalm(
  *,
  path: str,
  kind: str = 'pairs',
  form: str = 'text',
  split: str = 'all',
  held_out_fraction: float = 0.1,
) -> rows.RecordSource:
  """PandaLM's test set (Y. Wang et al., arXiv:2306.05087): three votes a pair.

  path: data/testset-v1.json of github.com/WeOpenML/PandaLM. The answer that two
  or three people prefer is preferred; rows without one are left out. An `input`
  comes on the line after its `instruction`. form, split: as in
  `finegrained_rlhf`.
  """
  shape = registry.lookup(dialogues.FORMS, form, 'form of prompts')
  return files.source(
    assets.find_files(path, row_formats.SUFFIXES),
    lambda row: _voted(row, shape),
    kind=kind,
    columns=('instruction', 'response1', 'response2', *_VOTES),
    split=split,
    held_out_fraction=held_out_fraction,
  )


def _question(row: Any) -> str:
  passages = rows.field_of(row, 'passages')
  if not isinstance(passages, list) or not all(
    isinstance(p, list) and p and all(isinstance(x, str) for x in p)
    for p in passages
  ):
    raise errors.unexpected(
      passages, 'passages are lists of a title and sentences'
    )
  texts = [f'{title}\n{" ".join(text)}' for title, *text in passages]
  return '\n\n'.join([*texts, rows.text_of(row, 'question')])


def _predictions(row: Any, kind: str):
  """(answers, preferences); None if all are tied, and `kind` compares them."""
  answers = [
    rows.text_of(row, f'prediction {i + 1}') for i in range(_NUM_PREDICTIONS)
  ]
  pairs = list(itertools.combinations(range(_NUM_PREDICTIONS), 2))
  votes = rows.field_of(row, 'preference')
  if (
    not isinstance(votes, list)
    or len(votes) != len(pairs)
    or any(vote not in (0, 1, 2) for vote in votes)
  ):
    raise errors.unexpected(votes, f'preference is {len(pairs)} of 0, 1 and 2')
  if rows.all_tied(votes, kind) and not votes[0]:
    return None
  return answers, [
    [a, b] if vote == 1 else [b, a]
    for (a, b), vote in zip(pairs, votes)
    if vote
  ]


def _correction(row: Any, kind: str):
  del kind
  feedback = rows.field_of(row, 'feedback')
  corrected = rows.text_of(feedback, 'corrected-prediction').strip()
  first = rows.text_of(row, 'prediction 1').strip()
  if corrected in ('', first):
    return None
  return [corrected, first], [[0, 1]]


COMPARE = {'predictions': _predictions, 'correction': _correction}


def _voted(row: Any, shape) -> dict | None:
  votes = [rows.field_of(row, name) for name in _VOTES]
  if any(vote not in (0, 1, 2) for vote in votes):
    raise errors.unexpected(votes, 'votes are 0, 1 or 2')
  vote, count = collections.Counter(votes).most_common(1)[0]
  if not vote or count < 2:
    return None
  asked = rows.text_of(row, 'instruction')
  if row.get('input'):
    asked = f'{asked}\n{rows.text_of(row, "input")}'
  answers = [rows.text_of(row, f'response{i}') for i in (vote, 3 - vote)]
  return dialogues.pair(shape, [('user', asked)], answers)
