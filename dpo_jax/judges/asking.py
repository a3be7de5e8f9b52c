"""Asks a judge what has no vote yet."""

from collections.abc import Sequence
from typing import Any

from absl import logging

from dpo_jax.judges import comparisons
from dpo_jax.judges import votes as votes_lib

Question = comparisons.Question


def ask(
  judge, asked: Sequence[Question], votes: votes_lib.File, *, yes: bool
) -> None:
  """Asks what `votes` has no answer to; equal answers are a tie, unasked.

  A question of several groups is asked once, and has a vote in each. yes:
  whether a judge that costs something may be asked; ValueError, which tells the
  costs, if it would have to be.
  """
  known = {(vote['id'], vote['group']) for vote in votes.votes}
  answered = {vote['id']: vote for vote in votes.votes}
  left: dict[str, list[Question]] = {}
  for question in asked:
    name = question.id(judge.fingerprint)
    if (name, question.comparison.group) not in known:
      left.setdefault(name, []).append(question)

  def record(question, fields):
    name = question.id(judge.fingerprint)
    for same in left[name]:
      votes.append(
        {
          'id': name,
          **same.comparison._asdict(),
          'first': same.first,
          'judge': judge.name,
          'rater': None,
          **fields,
        }
      )

  unasked = []
  for name, (question, *_) in left.items():
    if name in answered:
      for same in left[name]:
        votes.append({**answered[name], 'group': same.comparison.group})
    elif question.comparison.a == question.comparison.b:
      record(question, {'verdict': 'tie'})
    else:
      unasked.append(question)
  bill = judge.bill(unasked)
  if unasked and bill is not None:
    logging.info('%s', bill)
    if not yes:
      raise ValueError(f'{bill} Give --yes to ask them.')
  failed = judge.ask(unasked, record)
  if failed:
    logging.warning(
      '%d of %d questions have no answer; the same command asks them again. '
      'The first errors:\n%s',
      failed.total(),
      len(unasked),
      '\n'.join(f'{n} x {text}' for text, n in failed.most_common()),
    )


def votes_of(
  judge, asked: Sequence[Question], votes: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
  """The votes on these questions, of which some have none."""
  known = {(vote['id'], vote['group']): vote for vote in votes}
  keys = [(q.id(judge.fingerprint), q.comparison.group) for q in asked]
  return [known[key] for key in keys if key in known]
