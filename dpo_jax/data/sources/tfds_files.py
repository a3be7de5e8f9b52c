"""Data sets that TensorFlow Datasets prepares, read without TensorFlow.

TFDS reads and writes array_record files in Python alone; it needs TensorFlow
for other formats, and for the feature code of some data sets while they are
prepared.
"""

import importlib
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from dpo_jax import assets, registry
from dpo_jax.data.sources import row_formats, rows

# Examples decoded at a time.
_CHUNK = 256


def tfds(
  *,
  name: str,
  split: str,
  kind: str = 'pairs',
  form: str = 'records',
  columns: Mapping[str, str] | None = None,
  data_dir: str | None = None,
  imports: str | None = None,
) -> rows.RecordSource:
  """Examples of a TFDS data set, in the shapes of records.py.

  name: 'data_set', 'data_set/config' or either with ':1.0.0'. split: as TFDS
  has it, such as 'train' or 'train[:1000]'. form, columns: as in the source
  'jsonl'.
  data_dir: where TFDS keeps its data; None for $TFDS_DATA_DIR or
  ~/tensorflow_datasets. What is not there is fetched and prepared. imports: a
  module that registers the data set, such as
  'dpo_jax.data.movie_reviews_tfds'.

  ValueError for an unknown data set or split, and for files of another format;
  FileNotFoundError where the data set can't be prepared.
  """
  rule, unread = row_formats.rule_of(form, columns)
  if imports is not None:
    importlib.import_module(imports)
  found, read = reader(name, split, data_dir)
  return rows.source(found, read, rule, kind=kind, unread=unread)


def reader(
  name: str, split: str, data_dir: str | None = None
) -> tuple[list[assets.File], Callable[[], Iterator[rows.Row]]]:
  """(files of a split, () -> its examples as plain values, counted from 1)."""
  builder = _prepared(name, data_dir)
  features = builder.data_path / 'features.json'
  paths = map(pathlib.Path, (*builder.info.splits[split].filepaths, features))

  def read():
    data = builder.as_data_source(split)
    for begin in range(0, len(data), _CHUNK):
      places = range(begin, min(begin + _CHUNK, len(data)))
      for i, value in zip(places, data.__getitems__(list(places))):
        yield rows.Row(_plain(value), f'{name}:{split}', i + 1)

  return [(p.name, p) for p in paths], read


def _prepared(name: str, data_dir: str | None) -> Any:
  """The read-only builder of a data set in array_record files."""
  import tensorflow_datasets

  root = pathlib.Path(
    data_dir or os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'
  ).expanduser()
  base, _, version = name.partition(':')
  if not _versions(root / base, version):
    _prepare(name, root)
  found = _versions(root / base, version)
  if not found:
    raise FileNotFoundError(f'TFDS left no {name!r} in {str(root)!r}.')
  builder = tensorflow_datasets.builder_from_directory(str(found[-1]))
  form = builder.info.file_format
  if form != tensorflow_datasets.core.file_adapters.FileFormat.ARRAY_RECORD:
    raise ValueError(
      f'{str(found[-1])!r} has files in {form.value}, which TFDS reads with '
      "TensorFlow alone. Prepare it with file_format='array_record', or run "
      '`tfds convert_format`.'
    )
  return builder


def _versions(folder: pathlib.Path, version: str) -> list[pathlib.Path]:
  """Directories of a prepared data set, the newest version last."""
  found = []
  for path in folder.glob(version or '*'):
    match = re.fullmatch(r'(\d+)\.(\d+)\.(\d+)', path.name)
    if match and (path / 'features.json').exists():
      found.append((tuple(map(int, match.groups())), path))
  return [path for _, path in sorted(found)]


def _prepare(name: str, root: pathlib.Path) -> None:
  """Has TFDS fetch a data set and write it as array_record files."""
  import tensorflow_datasets

  try:
    builder = tensorflow_datasets.builder(
      name, data_dir=str(root), file_format='array_record'
    )
  except tensorflow_datasets.core.registered.DatasetNotFoundError as error:
    known = tensorflow_datasets.list_builders(with_community_datasets=False)
    near = registry.closest(re.split('[/:]', name)[0], known)
    raise ValueError(
      f'TFDS has no data set {name!r}.{near} One of your own is registered by '
      'the module that `imports` names.'
    ) from error
  except ValueError:
    raise  # An unknown config or version: TFDS names those there are.
  except Exception as error:
    raise _unreachable(name, root, error) from error
  try:
    builder.download_and_prepare()
  # Whatever its download, archive and feature code raise.
  except Exception as error:
    raise _unreachable(name, root, error) from error


def _unreachable(name: str, root: pathlib.Path, error: Exception | str):
  folder = name.replace(':', '/')
  if isinstance(error, ImportError):
    error = f'{error} (TFDS needs it to prepare this data set, not to read it)'
  else:
    error = f'{type(error).__name__}: {error}'
  return FileNotFoundError(
    f'TFDS could not prepare {name!r} in {str(root)!r}: '
    f'{error}. Offline, set data_dir or TFDS_DATA_DIR '
    f'to a directory with {folder}/ as TFDS prepares it elsewhere: '
    f"tfds.builder({name!r}, file_format='array_record')"
    '.download_and_prepare().'
  )


def _plain(value: Any) -> Any:
  """Text for bytes, lists for arrays, numbers for NumPy's."""
  if isinstance(value, dict):
    return {name: _plain(each) for name, each in value.items()}
  if isinstance(value, bytes):
    # What is not UTF-8 becomes lone surrogates, which no record may hold.
    return value.decode('utf-8', 'surrogateescape')
  if isinstance(value, np.ndarray | np.generic):
    return _plain(value.tolist())
  if isinstance(value, list | tuple):
    return [_plain(each) for each in value]
  return value
