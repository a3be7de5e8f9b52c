"""Rows that cannot be used: why, and how many of them a run puts up with."""

import collections
import dataclasses
from collections.abc import Mapping
from typing import Any

EXAMPLES = 3  # Rows named for each reason.


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


@dataclasses.dataclass
class DropReport:
  """How many rows were read, and which were dropped for what reason.

  A row of which some examples are kept is dropped for the share of the others.
  counts: reason -> rows; examples: reason -> 'file:row: detail' of the first
  few.
  """

  read: int = 0
  counts: collections.Counter = dataclasses.field(
    default_factory=collections.Counter
  )
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

  def table(self) -> str:
    """What was read, kept and dropped, a line each, as text."""
    kept, dropped = _shown(self.kept), _shown(self.dropped)
    lines = [f'{self.read} rows read, {kept} kept, {dropped} dropped']
    width = max(map(len, self.counts), default=0)
    for reason, count in self.counts.most_common():
      share = count / self.read
      lines.append(f'  {reason:{width}}  {_shown(count):>8}  {share:7.2%}')
      lines += [f'    {example}' for example in self.examples[reason]]
    return '\n'.join(lines)

  def check(self, max_drop_fraction: float) -> None:
    """Raises ValueError if nothing is left, or more was dropped than allowed.

    max_drop_fraction: of the rows read, in [0, 1].
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
    if self.dropped > max_drop_fraction * self.read:
      raise ValueError(
        f'{self.dropped / self.read:.2%} of the rows were dropped, more than '
        f'max_drop_fraction={max_drop_fraction} allows. Mend the rows below, '
        f'or raise max_drop_fraction if they may be left out.\n{self.table()}'
      )

  def to_json(self) -> dict[str, Any]:
    """A JSON object that `from_json` reads."""
    return {
      'read': self.read,
      'counts': dict(self.counts),
      'examples': self.examples,
    }

  @classmethod
  def from_json(cls, value: Mapping[str, Any]) -> 'DropReport':
    """The inverse of `to_json`."""
    counts = collections.Counter(value['counts'])
    return cls(value['read'], counts, dict(value['examples']))


def _shown(rows: float) -> str:
  """A number of rows, with two decimals where it is no whole one."""
  return f'{rows:.2f}'.removesuffix('.00')
