"""Training and held-out rows of data without splits of its own."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from dpo_jax import registry
from dpo_jax.data import conversations, drops, judgements, rows

SPLITS = ('all', 'train', 'test')


def share(text: str) -> float:
  """A number in [0, 1) that is as good as random, and fixed by the text."""
  digest = hashlib.sha256(text.encode('utf-8', 'surrogatepass')).digest()
  return int.from_bytes(digest[:7]) / 256**7


def check(split: str, held_out_fraction: float) -> None:
  """ValueError for an unknown split, and for a share outside (0, 1)."""
  if split not in SPLITS:
    raise registry.unknown('split', split, SPLITS)
  check_fraction(held_out_fraction)


def check_fraction(held_out_fraction: float) -> None:
  """ValueError for what is no share between 0 and 1."""
  if not 0 < held_out_fraction < 1:
    raise ValueError(
      f'held_out_fraction={held_out_fraction}: expected a share of the data, '
      'between 0 and 1.'
    )


def part_of(
  items: Iterator[rows.Item], split: str, held_out_fraction: float
) -> Iterator[rows.Item]:
  """The rows of 'train' or of 'test'.

  A row is in 'test' if the `share` of its prompt is below `held_out_fraction`:
  all rows of a prompt are on one side, whatever their order, file, format and
  chat template, and a larger fraction holds out the same rows and more.
  Unusable rows are in 'train'. Those of the other side are counted: after the
  rows of this one comes their `drops.Elsewhere`. ValueError if there are rows,
  but none in this split.
  """
  found = {'train': 0, 'test': 0}
  for item in items:
    side = 'train'
    if isinstance(item, rows.Row):
      try:
        held_out = share(prompt_of(item.value)) < held_out_fraction
        side = 'test' if held_out else 'train'
      except drops.RowError as error:
        item = rows.placed(error, item)
    found[side] += 1
    if split == side:
      yield item
  if not found[split] and sum(found.values()):
    raise ValueError(
      f'All {sum(found.values())} rows are on the other side of split='
      f'{split!r}: rows are split by their prompts, which may be few. Set '
      f"held_out_fraction (given: {held_out_fraction}), or split='all' with a "
      'file of its own for each split.'
    )
  yield drops.Elsewhere(sum(found.values()) - found[split])


def prompt_of(row: Any) -> str:
  """What all rows of a prompt share, as text; drops.RowError if unreadable.

  The prompt of a row in a shape of records.py: its field, or the messages
  before the last one. One message of a user is the same prompt as its text.
  Where there is no prompt, or an empty one, it is the first answer.
  """
  judged = judgements.judge(row)
  prompt, answer = map(
    conversations.unstored, (judged.prompt, judged.answers[0])
  )
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
