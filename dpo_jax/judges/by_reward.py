"""A reward as judge: the answer with the higher score wins."""

import collections
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dpo_jax import rewards
from dpo_jax.judges import comparisons

Question = comparisons.Question


class ByReward:
  """A judge that costs nothing and does not mind the order."""

  def __init__(self, section: str | Mapping[str, Any]):
    self._reward = rewards.build(section)
    self.name = self._reward.name
    self.fingerprint = json.dumps(section, sort_keys=True, default=dict)

  @property
  def source(self) -> str:
    """Where the reward comes from: a model, a function, or its name."""
    return self._reward.source or self.name

  def files(self):
    """The reward's files, by which a change is noticed."""
    return self._reward.files()

  def check(self) -> None:
    """Loads the reward; ValueError if that fails."""
    self._reward([], [])

  def bill(self, questions: Sequence[Question]) -> None:
    """Costs nothing."""

  def ask(
    self,
    questions: Sequence[Question],
    record: Callable[[Question, dict[str, Any]], None],
  ) -> collections.Counter:
    """Calls record(question, fields of its vote) for each; none fails."""
    asked = [q.comparison for q in questions]
    prompts = [c.prompt for c in asked]
    texts = [c.a for c in asked] + [c.b for c in asked]
    scores = rewards.as_json(self._reward(prompts * 2, texts)) if asked else []
    for question, a, b in zip(questions, scores, scores[len(asked) :]):
      verdict = 'tie' if a == b else 'a' if a > b else 'b'
      record(question, {'verdict': verdict, 'scores': [a, b]})
    return collections.Counter()


def reward(*, reward: str | Mapping[str, Any]) -> ByReward:
  """A judge from a reward's name or section; see `rewards.build`."""
  return ByReward(reward)
