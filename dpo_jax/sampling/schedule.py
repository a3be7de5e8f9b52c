"""Which prompts are in which slots of the decoding loop, and which wait."""

from collections.abc import Sequence

import numpy as np

from dpo_jax.sampling import prompt_packing
from dpo_jax.sampling.prompt_packing import Share

# A freed slot waits until this part of all slots is free: prompts that are
# prefilled together take less time than one by one.
PART = 8


class Schedule:
  """Shares of prompts in slots; each of R rows has the same number of slots.

  Slots are numbered row by row.
  """

  def __init__(
    self,
    prompts: Sequence[Sequence[int]],
    waiting: Sequence[Share],
    *,
    rows: int,
    slots_per_row: int,
  ):
    self._lengths = [len(prompt) for prompt in prompts]
    self._waiting = list(waiting)[::-1]
    self._held = [[None] * slots_per_row for _ in range(rows)]
    self.slots = rows * slots_per_row

  def is_done(self) -> bool:
    """Whether all shares have been taken out of their slots."""
    return not self._waiting and self._num_free() == self.slots

  def _num_free(self) -> int:
    return sum(row.count(None) for row in self._held)

  def wanted(self) -> int:
    """The number of free slots at which the next prompts join, or all end."""
    if not self._waiting:
      return self.slots
    return min(len(self._waiting), max(1, self.slots // PART))

  def next_group(self) -> tuple[list[list[Share]], np.ndarray] | None:
    """The shares of each row that join now, and slot_RxT; None if none do.

    Slots are counted within their row; -1 where a row has fewer than T.
    """
    if not self._waiting or self._num_free() < self.wanted():
      return None
    longest = self._lengths[self._waiting[-1].prompt]
    most = prompt_packing.most_in_a_row(longest)
    free = [
      [s for s, x in enumerate(r) if x is None][:most] for r in self._held
    ]
    group = [[] for _ in free]
    # Rows in turn, every other time in reverse, so that they get about equally
    # many tokens: the longest prompts come first.
    for turn in range(most):
      rows = [r for r, slots in enumerate(free) if turn < len(slots)]
      for r in rows[:: 1 if turn % 2 == 0 else -1]:
        if self._waiting:
          group[r].append(self._waiting.pop())
          self._held[r][free[r][turn]] = group[r][-1]
    num_trees = prompt_packing.num_trees(group)
    slot_RxT = np.full((len(group), num_trees), -1, np.int32)
    for r, row in enumerate(group):
      slot_RxT[r, : len(row)] = free[r][: len(row)]
    return group, slot_RxT

  def take_out(self, ended_B: np.ndarray) -> list[tuple[int, Share]]:
    """(slot, share) of what has ended; these slots become free."""
    out = []
    per_row = self.slots // len(self._held)
    for b in np.flatnonzero(ended_B):
      row, s = divmod(int(b), per_row)
      if self._held[row][s] is not None:
        out.append((int(b), self._held[row][s]))
        self._held[row][s] = None
    return out
