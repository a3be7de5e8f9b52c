"""Files and the rule of a data set to a `records.Source`."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

from dpo_jax import registry
from dpo_jax.data import drops, grouping, records, rows, splits
from dpo_jax.data.sources import files


def source(
  found: Sequence[files.File],
  rule: Callable[[Any], dict | None],
  *,
  kind: str,
  columns: files.Columns,
  split: str = 'all',
  held_out_fraction: float = 0.1,
  grouped: bool = False,
  unread: Callable[[rows.Row], tuple[str, ...]] = lambda row: (),
) -> records.Source:
  """The rows of files as records.

  rule, unread: as in `rows.convert`. columns: of Parquet files. split: as in
  `splits.part_of`. grouped: pairs of one prompt are one record.
  """
  registry.lookup(records.KINDS, kind, 'kind of record')
  splits.check(split, held_out_fraction)
  files.check_columns(found, columns)

  def read(render):
    items = rows.convert(files.read(found, columns), rule, unread)
    if split != 'all':
      items = splits.part_of(items, split, held_out_fraction)
    if grouped:
      items = grouping.by_prompt(items)
    return rows.parse(items, kind, render)

  return records.Source(tuple(found), read)


def check_split(split: str, known: Collection[str]) -> None:
  """ValueError for a split that the data set does not have."""
  if split not in known:
    raise registry.unknown('split', split, known)


def check_not_blank(answers: Sequence[str]) -> None:
  """drops.RowError if any of them is white space alone."""
  if not all(answer.strip() for answer in answers):
    raise drops.RowError('empty_completion', 'an answer is blank')


def all_tied(scores: Sequence[Any], kind: str) -> bool:
  """Whether scores prefer nothing, where `kind` compares answers.

  Common in votes, and no fault of the row; supervised tuning takes any.
  """
  return kind != 'sft' and all(s == scores[0] for s in scores)
