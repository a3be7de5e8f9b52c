"""A language model as the preference of online methods.

  preference=dict(
    path='dpo_jax.judges.preference:prefer',
    options=dict(model='MODEL', template='dialogue'),
  )

on the page of an online method asks it about each two samples of a prompt, and
costs what that costs: nothing asks for a confirmation.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging

from dpo_jax.judges import comparisons, endpoint, verdicts


def prefer(
  prompts: Sequence[str],
  first: Sequence[str],
  second: Sequence[str],
  **options: Any,
) -> np.ndarray:
  """f32[N]: 1 where the judge prefers `first`, 0 where `second`, 0.5 for ties.

  options: of `endpoint.endpoint`. Which of the two is shown first depends on
  the texts alone; equal texts are a tie, unasked. Replies that decide nothing,
  and questions that failed, are ties, with a warning. ValueError if the
  endpoint cannot be asked; RuntimeError if more than half of all questions
  failed.
  """
  judge = endpoint.endpoint(**options)
  judge.check()
  pairs = [
    comparisons.Comparison('', *texts) for texts in zip(prompts, first, second)
  ]
  asked = comparisons.questions(pairs, order='random', seed=0)
  found = {q: 0.5 for q in asked if q.comparison.a == q.comparison.b}

  def record(question, vote):
    found[question] = verdicts.outcome(vote)

  left = dict.fromkeys(q for q in asked if q not in found)
  failed = judge.ask(list(left), record)
  if failed.total() > len(asked) / 2:
    raise RuntimeError(
      f'The judge {judge.name!r} failed on {failed.total()} of {len(asked)} '
      f'questions: {dict(failed)}.'
    )
  outcomes = [found.get(question) for question in asked]
  if undecided := outcomes.count(None):
    logging.warning(
      'Of %d questions to %s, %d decided nothing and count as ties.',
      len(asked),
      judge.name,
      undecided,
    )
  return np.float32([0.5 if x is None else x for x in outcomes])
