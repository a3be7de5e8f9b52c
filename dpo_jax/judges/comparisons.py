"""Two answers to a prompt, and the questions that a judge is asked of them."""

import hashlib
import json
from collections.abc import Sequence
from typing import NamedTuple

ORDERS = ('random', 'both')


class Comparison(NamedTuple):
  """Answers of sides a and b. group: what is reported together: 'T=0.25'."""

  group: str
  prompt: str
  a: str
  b: str


class Question(NamedTuple):
  """A comparison with side `first`, 'a' or 'b', shown before the other."""

  comparison: Comparison
  first: str

  @property
  def shown(self) -> tuple[str, str]:
    """The answers in the order in which they are shown."""
    a, b = self.comparison.a, self.comparison.b
    return (a, b) if self.first == 'a' else (b, a)

  def id(self, judge: str) -> str:
    """Of a judge's answer to this: a hash of all that it depends on.

    judge: what tells judges apart. Groups are left out: equal answers to a
    prompt at two temperatures are one question, which is asked once.
    """
    c = self.comparison
    return _digest(judge, c.prompt, c.a, c.b, self.first).hex()[:32]


def questions(
  comparisons: Sequence[Comparison], *, order: str, seed: int
) -> list[Question]:
  """Of each comparison one, its first side drawn; with 'both', one each way.

  The draw depends on the seed and the texts alone, not on what else is asked.
  """
  if order == 'both':
    return [Question(c, first) for c in comparisons for first in 'ab']
  return [Question(c, 'ab'[_digest(seed, *c[1:])[0] % 2]) for c in comparisons]


def _digest(*content) -> bytes:
  return hashlib.sha256(json.dumps(content).encode()).digest()
