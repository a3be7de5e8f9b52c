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
# A line that holds a letter or 'tie' alone, perhaps after some words and a
# colon, in the quotes, stars, brackets or tags that models like to add.
_MARKS = r'(?:[\s*_"\'`()\[\].]|</?\w+>)*'
_VERDICT = re.compile(
  rf'{_MARKS}(?P<label>[A-Za-z][A-Za-z ]{{0,30}}:)?{_MARKS}'
  rf'(?:(?:Summary|Response|Answer|Option) )?(?P<said>A|B|[Tt]ie|TIE){_MARKS}'
  rf'(?:\([^)]*\){_MARKS})?'
)
# Labels of the answer that is not preferred.
_WORSE = re.compile(r'\b(less|least|worse|worst|weaker|loser|not)\b', re.I)
_REFUSAL = re.compile(
  r"\b(sorry|cannot|can't|unable to|won't)\b", re.IGNORECASE
)


def read(reply: str | None) -> str:
  """'first', 'second', 'tie', 'refused' or 'unparsable'.

  The last line is the verdict, or else the reply is unparsable; after it may
  come the name of the worse one. A reply without a verdict that says that it
  cannot give one is a refusal, as is one without text.
  """
  for line in reversed((reply or '').strip().splitlines()):
    found = _VERDICT.fullmatch(line)
    if found and not _WORSE.search(found['label'] or ''):
      return {'A': 'first', 'B': 'second'}.get(found['said'], 'tie')
    if line.strip() and not found:
      break
  refused = not (reply or '').strip() or _REFUSAL.search(reply)
  return 'refused' if refused else 'unparsable'


def of_sides(said: str, first: str) -> str:
  """A verdict on a and b; `first` is the side that was shown first."""
  second = 'b' if first == 'a' else 'a'
  return {'first': first, 'second': second}.get(said, said)


def outcome(vote: dict[str, Any]) -> float | None:
  """For side a, in [0, 1]; None for a vote that decides nothing."""
  return vote.get('outcome', OUTCOMES[vote['verdict']])
