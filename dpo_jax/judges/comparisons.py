"""Two answers to a prompt, and the questions that a judge is asked of them."""

import hashlib
import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

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
    prompt at two temperatures are one question.
    """
    c = self.comparison
    content = json.dumps([judge, c.prompt, c.a, c.b, self.first])
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def questions(
  comparisons: Sequence[Comparison], *, order: str, seed: int
) -> list[Question]:
  """Of each comparison one, its first side drawn; with 'both', one each way."""
  if order == 'both':
    return [Question(c, first) for c in comparisons for first in 'ab']
  firsts = np.random.default_rng(seed).integers(2, size=len(comparisons))
  return [Question(c, 'ab'[i]) for c, i in zip(comparisons, firsts)]
