"""Training and held-out rows of data without splits of its own."""

import hashlib
import json
from typing import Any

from dpo_jax import registry
from dpo_jax.chat import conversations
from dpo_jax.data import preferences

SPLITS = ('all', 'train', 'test')


def share(text: str) -> float:
  """A hash of the text, uniform in [0, 1)."""
  digest = hashlib.sha256(text.encode('utf-8', 'surrogatepass')).digest()
  return int.from_bytes(digest[:7]) / 256**7


def check(split: str, held_out_fraction: float, known=SPLITS) -> None:
  """ValueError for an unknown split, and for a fraction outside (0, 1)."""
  if split not in known:
    raise registry.unknown('split', split, known)
  if not 0 < held_out_fraction < 1:
    raise ValueError(
      f'held_out_fraction={held_out_fraction}: expected a share of the data, '
      'between 0 and 1.'
    )


def prompt_of(row: Any) -> str:
  """What all rows of a prompt share, as text; RowError if unreadable.

  The prompt of a row in a shape of records.py: its field, or the messages
  before the last one. One message of a user is the same prompt as its text.
  Without a prompt, or with an empty one, it is the first answer.
  """
  found = preferences.of_row(row)
  prompt, answer = map(conversations.unstored, (found.prompt, found.answers[0]))
  if not prompt and isinstance(answer, list):
    prompt = answer[:-1]
  prompt = prompt or answer
  if isinstance(prompt, list):
    prompt = conversations.checked(prompt, 'a prompt')
    if len(prompt) == 1 and prompt[0]['role'] == 'user':
      prompt = prompt[0]['content']
  if isinstance(prompt, str):
    return prompt
  return json.dumps(prompt, sort_keys=True, default=str)
