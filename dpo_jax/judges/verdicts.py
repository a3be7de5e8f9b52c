"""What a judge said of two answers: a verdict, and its outcome for one side."""

import re
from typing import Any

# For side a of a comparison; None: not counted.
OUTCOMES = {
  'a': 1.0,
  'b': 0.0,
  'tie': 0.5,
  'skip': None,
  'refused': None,
  'unparsable': None,
}
# A line that holds a letter or 'tie' alone, perhaps after a word or two and a
# colon, in the quotes, stars or brackets that models like to add.
_MARKS = r'[\s*_"\'`()\[\].]*'
_VERDICT = re.compile(
  rf'{_MARKS}(?:[A-Za-z][A-Za-z ]{{0,30}}:)?{_MARKS}'
  rf'(?:(?:Summary|Response|Answer) )?(A|B|[Tt]ie|TIE){_MARKS}'
)
_REFUSAL = re.compile(
  r"\b(sorry|cannot|can't|unable to|won't)\b", re.IGNORECASE
)


def read(reply: str | None) -> str:
  """'first', 'second', 'tie', 'refused' or 'unparsable'.

  The last line that is a verdict counts: those before it may list criteria. A
  reply without one that says so is a refusal; without any text, too.
  """
  for line in reversed((reply or '').strip().splitlines()):
    if found := _VERDICT.fullmatch(line):
      return {'A': 'first', 'B': 'second'}.get(found[1], 'tie')
  refused = not (reply or '').strip() or _REFUSAL.search(reply)
  return 'refused' if refused else 'unparsable'


def of_sides(said: str, first: str) -> str:
  """A verdict on a and b; `first` is the side that was shown first."""
  second = 'b' if first == 'a' else 'a'
  return {'first': first, 'second': second}.get(said, said)


def outcome(vote: dict[str, Any]) -> float | None:
  """For side a, in [0, 1]; None for a vote that decides nothing."""
  return vote.get('outcome', OUTCOMES[vote['verdict']])
