"""`RowError`, and the checks of a row's values that raise it."""

from typing import Any


class RowError(ValueError):
  """Why a row cannot be used: `reason`, a slug to count by, and `detail`.

  file, row: where the row is, rows counted from 1. weight: how many rows are
  lost: more than one where rows were merged, a fraction of one where other
  examples of the row are kept.
  """

  def __init__(self, reason: str, detail: str, file: str = '', row: int = 0):
    super().__init__(f'{reason}: {detail}')
    self.reason = reason
    self.detail = detail
    self.file = file
    self.row = row
    self.weight: float = 1


def show(value: object) -> str:
  """A value as an error shows it: at most 60 characters."""
  text = repr(value)
  return text if len(text) <= 60 else f'{text[:57]}...'


def unexpected(
  value: object, expected: str, reason: str = 'wrong_type'
) -> RowError:
  """The error 'EXPECTED, not VALUE'."""
  return RowError(reason, f'{expected}, not {show(value)}')


def check_object(row: Any) -> dict:
  """The row, if it is a JSON object; RowError if not."""
  if not isinstance(row, dict):
    raise unexpected(row, 'an object was expected', 'not_an_object')
  return row


def check_list(value: Any, name: str) -> list:
  """The value of a field, if it is a list; RowError if not."""
  if not isinstance(value, list):
    raise unexpected(value, f'{name} must be a list')
  return value


def check_text(value: Any, name: str) -> str:
  """The value of a field, if it is text; RowError if not."""
  if not isinstance(value, str):
    raise unexpected(value, f'{name} must be text')
  return value
