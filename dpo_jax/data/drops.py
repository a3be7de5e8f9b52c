"""Rows that cannot be used: why, and how many of them a run puts up with."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

Counts = collections.Counter
EXAMPLES = 3  # Rows named for each reason.
FEW = 5  # So many unusable rows stop no run by themselves.


class RowError(ValueError):
  """Why a row cannot be used: `reason`, a slug to count by, and `detail`.

  weight: rows that are lost. More than one where rows were merged, and a part
  of one where other examples of the row are kept.
  """

  def __init__(self, reason: str, detail: str, file: str = '', row: int = 0):
    super().__init__(f'{reason}: {detail}')
    self.reason = reason
    self.detail = detail
    self.file = file
    self.row = row
    self.weight: float = 1


@dataclasses.dataclass(frozen=True)
class Elsewhere:
  """How many rows of the same files are in the other split."""

  count: int


@dataclasses.dataclass
class DropReport:
  """How many rows were read, and which were dropped for what reason.

  A row of which some examples are kept is dropped for the share of the others.
  counts: reason -> rows; examples: reason -> 'file:row: detail' of the first
  few. elsewhere: rows of the same files in the other split. unread: field that
  nothing reads -> rows that have it. literal: control token -> rows whose
  prompts hold it, where it is encoded as text.
  """

  read: int = 0
  elsewhere: int = 0
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

  def add(self, *errors: RowError) -> None:
    """Counts dropped rows, which `read` has counted before."""
    for error in errors:
      self._add(error)

  def _add(self, error: RowError) -> None:
    self.counts[error.reason] += error.weight
    shown = self.examples.setdefault(error.reason, [])
    if len(shown) < EXAMPLES:
      shown.append(f'{error.file}:{error.row}: {error.detail}')

  def note(self, record: Any, literal: Sequence[str]) -> None:
    """Counts what a record has that nothing reads, and control tokens in it."""
    for counts, names in (
      (self.unread, record.unread),
      (self.literal, literal),
    ):
      for name in dict.fromkeys(names):
        counts[name] += record.weight

  def table(self) -> str:
    """What was read, kept and dropped, a line each, as text."""
    kept, dropped = _shown(self.kept), _shown(self.dropped)
    lines = [f'{self.read} rows read, {kept} kept, {dropped} dropped']
    width = max(map(len, self.counts), default=0)
    for reason, count in self.counts.most_common():
      share = count / self.read
      lines.append(f'  {reason:{width}}  {_shown(count):>8}  {share:7.2%}')
      lines += [f'    {example}' for example in self.examples[reason]]
    for what, rows in (
      ('fields that nothing reads', self.unread),
      ('control tokens in prompts, encoded as text', self.literal),
    ):
      if rows:
        each = ', '.join(f'{name!r} ({_shown(n)})' for name, n in rows.items())
        lines.append(f'  {what} (rows): {each}')
    return '\n'.join(lines)

  def check(self, max_drop_fraction: float) -> None:
    """Raises ValueError if nothing is left, or more was dropped than allowed.

    max_drop_fraction: of the rows of the files, those in the other split
    included, in [0, 1]. Up to `FEW` rows are always allowed, but with 0.
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
    of = self.read + self.elsewhere
    few = FEW if max_drop_fraction else 0
    if self.dropped > max(few, max_drop_fraction * of):
      raise ValueError(
        f'{self.dropped / of:.2%} of the rows were dropped, more than '
        f'max_drop_fraction={max_drop_fraction} allows. Mend the rows below, '
        f'or raise max_drop_fraction if they may be left out.\n{self.table()}'
      )

  def to_json(self) -> dict[str, Any]:
    """A JSON object that `from_json` reads."""
    return {
      'read': self.read,
      'elsewhere': self.elsewhere,
      'unread': dict(self.unread),
      'literal': dict(self.literal),
      'counts': dict(self.counts),
      'examples': self.examples,
    }

  @classmethod
  def from_json(cls, value: Mapping[str, Any]) -> 'DropReport':
    """The inverse of `to_json`."""
    counters = {
      name: Counts(value[name]) for name in ('counts', 'unread', 'literal')
    }
    return cls(
      read=value['read'],
      elsewhere=value['elsewhere'],
      examples=dict(value['examples']),
      **counters,
    )


def _shown(rows: float) -> str:
  """A number of rows, with two decimals where it is no whole one."""
  return f'{rows:.2f}'.removesuffix('.00')
