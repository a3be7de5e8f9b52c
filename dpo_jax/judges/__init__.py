"""Judges: who says which of two answers to a prompt is better."""

from collections.abc import Callable, Mapping
from typing import Any

from dpo_jax import registry
from dpo_jax.judges import by_reward, endpoint, people
from dpo_jax.judges.asking import ask, votes_of
from dpo_jax.judges.by_reward import ByReward
from dpo_jax.judges.comparisons import (
  ORDERS,
  Comparison,
  Question,
  questions,
)
from dpo_jax.judges.verdicts import OUTCOMES, outcome
from dpo_jax.judges.votes import File, read

__all__ = [
  'JUDGES',
  'ORDERS',
  'OUTCOMES',
  'ByReward',
  'Comparison',
  'File',
  'Question',
  'ask',
  'build',
  'outcome',
  'people',
  'questions',
  'read',
  'votes_of',
]

# A judge has name, fingerprint, check(), bill(questions) and
# ask(questions, record); see endpoint.py.
JUDGES: dict[str, Callable[..., Any]] = {
  'endpoint': endpoint.endpoint,
  'reward': by_reward.reward,
}


def build(section: Mapping[str, Any]):
  """The judge of dict(name=..., **options); ValueError if one is wrong."""
  return registry.build(JUDGES, section, 'judge')()
