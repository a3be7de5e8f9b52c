"""Data sets as the hub keeps them: which files of a repository a split has.

A repository is a URI (hf://datasets/owner/name) or a local directory with the
same files, such as `huggingface-cli download --repo-type dataset` leaves.
"""

import pathlib
import re
from collections.abc import Sequence

from dpo_jax import assets, registry
from dpo_jax.data.sources import files

# One way to lay out a split: globs with {split} and {subset}.
Layout = tuple[str, ...]

# What the hub's own conversion to Parquet makes of every data set.
CONVERTED: Layout = ('default/{split}/*.parquet',)

_SHARD = re.compile(r'(.*-)(\d{5})-of-(\d{5}).*')


def find(
  path: str,
  layouts: Sequence[Layout],
  *,
  split: str,
  subsets: Sequence[str] = ('*',),
) -> list[files.File]:
  """The files of a split of a repository, in the order of their names.

  The first layout is taken that has files for each of its globs, with each of
  `subsets`. FileNotFoundError where none has, with what was looked for, and
  where the repository can't be had, with what to set; ValueError for one that
  lacks shards.
  """
  folder = _folder(path, layouts[0])
  wanted = []
  for layout in layouts:
    patterns = [
      glob.format(split=split, subset=subset)
      for glob in layout
      for subset in (subsets if '{subset}' in glob else [''])
    ]
    found = {p: files.inside(path, folder, p) for p in patterns}
    if all(found.values()):
      names = sorted({f for part in found.values() for f in part})
      _check_shards(names)
      return names
    wanted.append(', '.join(p for p in patterns if not found[p]))
  raise FileNotFoundError(
    f'{path!r} has no {" and no ".join(wanted)}. {files.listing(folder)}'
  )


def check_subsets(
  subsets: Sequence[str] | None, known: Sequence[str], what: str
) -> Sequence[str]:
  """The subsets to read; None for all. ValueError for an unknown one."""
  if subsets is None:
    return known
  if isinstance(subsets, str) or not subsets:
    raise ValueError(
      f'{what}={subsets!r}: expected a list of some of {", ".join(known)}.'
    )
  for name in subsets:
    if name not in known and known != ('*',):
      raise registry.unknown(what, name, known)
  return subsets


def _folder(path: str, layout: Layout) -> pathlib.Path:
  try:
    folder = assets.resolve(path)
  except FileNotFoundError as error:
    raise FileNotFoundError(
      f'{error} Offline, `path` names a directory with the files of the '
      f'repository: {", ".join(layout)}.'
    ) from error
  if not folder.is_dir():
    raise ValueError(
      f'{path!r} is a file; expected a repository, or a directory like one, '
      f'with {", ".join(layout)}.'
    )
  return folder


def _check_shards(found: Sequence[files.File]) -> None:
  """ValueError if shards are missing of a file in several."""
  shards: dict[tuple[str, str], list[str]] = {}
  for name, _ in found:
    if match := _SHARD.fullmatch(name):
      stem, number, total = match.groups()
      shards.setdefault((stem, total), []).append(number)
  for (stem, total), numbers in shards.items():
    missing = {f'{i:05}' for i in range(int(total))} - set(numbers)
    if missing:
      raise ValueError(
        f'{stem}*: {len(numbers)} of {int(total)} shards are there; missing: '
        f'{", ".join(sorted(missing)[:5])}. Fetch them, or name the files of a '
        "part with source='parquet'."
      )
