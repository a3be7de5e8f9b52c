"""How many rows were read and dropped, why, and how many drops are too many."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from dpo_jax.chat import errors

Counts = collections.Counter
EXAMPLES = 3  # Rows shown for each reason.
FEW = 5  # This many dropped rows never stop a run.


@dataclasses.dataclass(frozen=True)
class OtherSplit:
  """How many rows of the same files are in the other split."""

  count: int


@dataclasses.dataclass
class DropReport:
  """How many rows were read, and which were dropped for what reason.

  A row that keeps some of its examples counts for the share of the others.
  counts: reason -> rows; examples: reason -> 'file:row: detail' of the first
  few. other_split: rows of the same files in the other split. unread: field
  that nothing reads -> rows that have it. literal: control token -> rows whose
  prompts hold it, where it is encoded as text.
  """

  read: int = 0
  other_split: int = 0
  counts: Counts = dataclasses.field(default_factory=Counts)
  unread: Counts = dataclasses.field(default_factory=Counts)
  literal: Counts = dataclasses.field(default_factory=Counts)
  examples: dict[str, list[str]] = dataclasses.field(default_factory=dict)

  @property
  def dropped(self) -> float:
    # Thirds of rows must sum to rows.
    return round(sum(self.counts.values()), 6)

  @property
  def kept(self) -> float:
    return round(self.read - self.dropped, 6)

  def add(self, *dropped: errors.RowError) -> None:
    """Counts dropped rows, which `read` has counted before."""
    for error in dropped:
      self.counts[error.reason] += error.weight
      shown = self.examples.setdefault(error.reason, [])
      if len(shown) < EXAMPLES:
        shown.append(f'{error.file}:{error.row}: {error.detail}')

  def note(self, record: Any, literal: Sequence[str]) -> None:
    """Counts a record's unread fields, and the control tokens in its prompt."""
    for name in dict.fromkeys(record.unread):
      self.unread[name] += record.weight
    for token in dict.fromkeys(literal):
      self.literal[token] += record.weight

  def table(self) -> str:
    """What was read, kept and dropped, a line each, as text."""
    kept, dropped = _rows(self.kept), _rows(self.dropped)
    lines = [f'{self.read} rows read, {kept} kept, {dropped} dropped']
    width = max(map(len, self.counts), default=0)
    for reason, count in self.counts.most_common():
      share = count / self.read
      lines.append(f'  {reason:{width}}  {_rows(count):>8}  {share:7.2%}')
      lines += [f'    {example}' for example in self.examples[reason]]
    for what, counts in (
      ('fields that nothing reads', self.unread),
      ('control tokens in prompts, encoded as text', self.literal),
    ):
      if counts:
        each = ', '.join(f'{name!r} ({_rows(n)})' for name, n in counts.items())
        lines.append(f'  {what} (rows): {each}')
    return '\n'.join(lines)

  def check(self, max_drop_fraction: float) -> None:
    """Raises ValueError if nothing is left, or more was dropped than allowed.

    max_drop_fraction: of the rows of the files, those in the other split
    included, in [0, 1]. Unless it is 0, `FEW` rows are always allowed.
    """
    if not 0 <= max_drop_fraction <= 1:
      raise ValueError(
        f'max_drop_fraction is a share of the rows, in [0, 1]; given: '
        f'{max_drop_fraction}.'
      )
    if not self.read:
      raise ValueError('The data source has no rows.')
    if not self.kept:
      raise ValueError(f'No row of the data is usable.\n{self.table()}')
    total = self.read + self.other_split
    few = FEW if max_drop_fraction else 0
    if self.dropped > max(few, max_drop_fraction * total):
      raise ValueError(
        f'{self.dropped / total:.2%} of the rows were dropped, more than '
        f'max_drop_fraction={max_drop_fraction} allows. Correct the rows '
        'below, or raise max_drop_fraction if they may be left out.\n'
        f'{self.table()}'
      )

  def to_json(self) -> dict[str, Any]:
    """A JSON object that `from_json` reads."""
    return dict(vars(self))

  @classmethod
  def from_json(cls, value: Mapping[str, Any]) -> 'DropReport':
    """The inverse of `to_json`."""
    counters = ('counts', 'unread', 'literal')
    return cls(**value | {name: Counts(value[name]) for name in counters})


def _rows(count: float) -> str:
  """A number of rows, with two decimals unless it is a whole number."""
  return f'{count:.2f}'.removesuffix('.00')
