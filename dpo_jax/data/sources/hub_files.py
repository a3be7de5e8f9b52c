"""Data sets on the Hugging Face hub: which files of a repository a split has.

A repository is a URI (hf://datasets/owner/name) or a local directory with the
same files, such as `huggingface-cli download --repo-type dataset` leaves.
"""

import pathlib
import re
from collections.abc import Collection, Sequence

from dpo_jax import assets, registry

# Globs of a split's files, with {split} and {subset}.
Globs = tuple[str, ...]

# What the hub's own conversion to Parquet makes of every data set.
CONVERTED: Globs = ('default/{split}/*.parquet',)

_SHARD = re.compile(r'(.*-)(\d{5})-of-(\d{5}).*')


def find(
  path: str,
  choices: Sequence[Globs],
  *,
  split: str,
  splits: Collection[str] = (),
  subsets: Sequence[str] | None = None,
  all_subsets: Sequence[str] = ('*',),
) -> list[assets.File]:
  """The files of a split of a repository, in the order of their names.

  choices: the first is taken that has files for each of its globs, with each of
  the subsets. splits: those there are; empty for one that the caller chose.
  subsets: some of `all_subsets`, None for all; only the first of `choices` has
  them. '*' in `all_subsets` stands for any name.

  FileNotFoundError where no choice has files, with what was looked for, and
  where the repository can't be had, with what to set; ValueError for an unknown
  split or subset, and for a repository that lacks shards.
  """
  if splits and split not in splits:
    raise registry.unknown('split', split, splits)
  if subsets is not None:
    if isinstance(subsets, str) or not subsets:
      raise ValueError(
        f'subsets={subsets!r}: expected a list of some of '
        f'{", ".join(all_subsets)}.'
      )
    for name in subsets:
      if name not in all_subsets and '*' not in all_subsets:
        raise registry.unknown('subsets', name, all_subsets)
    choices = choices[:1]
  folder = _folder(path, choices[0])
  wanted = []
  for globs in choices:
    patterns = [
      glob.format(split=split, subset=subset)
      for glob in globs
      for subset in (subsets or all_subsets if '{subset}' in glob else [''])
    ]
    found = {p: assets.files_inside(path, folder, p) for p in patterns}
    if all(found.values()):
      names = sorted({f for part in found.values() for f in part})
      _check_shards(names)
      return names
    wanted.append(', '.join(p for p in patterns if not found[p]))
  raise FileNotFoundError(
    f'{path!r} has no {" and no ".join(wanted)}. {assets.listing(folder)}'
  )


def _folder(path: str, globs: Globs) -> pathlib.Path:
  try:
    folder = assets.resolve(path)
  except FileNotFoundError as error:
    raise FileNotFoundError(
      f'{error} Offline, `path` names a directory with the files of the '
      f'repository: {", ".join(globs)}.'
    ) from error
  if not folder.is_dir():
    raise ValueError(
      f'{path!r} is a file; expected a repository, or a directory like one, '
      f'with {", ".join(globs)}.'
    )
  return folder


def _check_shards(found: Sequence[assets.File]) -> None:
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
