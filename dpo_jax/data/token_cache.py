"""Token records on disk, under a key of all that they were made from.

An entry is a directory: one .npy file for each array of `store.TokenRecords`
and of its extras, and meta.json with their checksums, its other fields, and the
drop report. The directory is renamed into place when it
is complete.
"""

import hashlib
import json
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from dpo_jax import assets, registry
from dpo_jax.chat import rendering
from dpo_jax.data import corrections as corrections_lib
from dpo_jax.data import drop_report, store, token_rules, tokenise
from dpo_jax.data.sources import rows

# Of the entries and of what they mean: raise it when either changes.
VERSION = 8


class Cached(NamedTuple):
  """Token records, what was dropped, and whether the cache had them."""

  records: store.TokenRecords
  report: drop_report.DropReport
  hit: bool


def load(
  name: str,
  options: Mapping[str, Any],
  source: rows.RecordSource,
  *,
  tokenizer: Any,
  settings: Mapping[str, Any],
  corrections: str | None = None,
  turns: str = 'last',
  chat: bool = False,
) -> Cached:
  """Token records of a source, from the cache or made and left there.

  name, options: of `source`. settings: keyword arguments of
  `token_rules.resolve`. corrections: a key of `corrections.CORRECTIONS`. turns,
  chat: as in `rendering.Render`. A damaged entry is made again, with a warning.
  """
  registry.lookup(rendering.TURNS, turns, 'turns')
  rules = token_rules.resolve(tokenizer, **settings)
  content = {
    'version': VERSION,
    'source': name,
    'options': dict(options),
    'files': [[n, assets.sha256_file(path)] for n, path in source.files],
    'tokenizer': tokenizer.fingerprint,
    'settings': {
      n: settings.get(n, p.default)
      for n, p in registry.options_of(token_rules.resolve).items()
    },
    'corrections': corrections,
    'turns': turns,
    'chat': chat,
  }
  key = json.dumps(content, sort_keys=True, default=str).encode()
  target = assets.cache_dir('tokens') / hashlib.sha256(key).hexdigest()
  if target.exists():
    try:
      return Cached(*read(target), hit=True)
    except (OSError, ValueError, LookupError, TypeError) as e:
      logging.warning('Token cache %s is damaged, made again: %s', target, e)
      shutil.rmtree(target)
  render = rendering.Render(
    tokenizer,
    turns=turns,
    date=rendering.DATE,
    chat=chat,
    mark=not rules.recognises,
  )
  make_mark = corrections and corrections_lib.CORRECTIONS[corrections]
  tokens, report = tokenise.tokenise(
    source.rows(render), tokenizer, rules, make_mark and make_mark(tokenizer)
  )
  if not len(tokens):
    return Cached(tokens, report, hit=False)
  try:
    with assets.atomic_path(target) as temp:
      write(temp, tokens, report)
  except FileExistsError:
    logging.info('Another process wrote %s first.', target)
  return Cached(*read(target), hit=False)


def write(
  folder: pathlib.Path,
  tokens: store.TokenRecords,
  report: drop_report.DropReport,
) -> None:
  """Writes an entry into a new directory."""
  folder.mkdir()
  arrays = {name: getattr(tokens, name) for name in store.ARRAYS}
  for name, array in {**arrays, **tokens.extras}.items():
    np.save(folder / f'{name}.npy', array)
  meta = {
    'version': VERSION,
    'arrays': {p.stem: assets.sha256_file(p) for p in sorted(folder.iterdir())},
    'extras': list(tokens.extras),
    'files': tokens.files,
    'plain': tokens.plain,
    'report': report.to_json(),
  }
  (folder / 'meta.json').write_text(json.dumps(meta, indent=2))


def read(
  folder: pathlib.Path,
) -> tuple[store.TokenRecords, drop_report.DropReport]:
  """An entry, memory-mapped; ValueError or OSError for a damaged one."""
  meta = json.loads((folder / 'meta.json').read_text())
  arrays = {}
  for name in meta['arrays']:
    path = folder / f'{name}.npy'
    if assets.sha256_file(path) != meta['arrays'][name]:
      raise ValueError(f'{path.name} does not match its checksum')
    # A plain view: a numpy.memmap is slow to slice.
    arrays[name] = np.asarray(np.load(path, mmap_mode='r'))
  report = drop_report.DropReport.from_json(meta['report'])
  extras = {name: arrays.pop(name) for name in meta['extras']}
  tokens = store.TokenRecords(
    **arrays,
    files=tuple(meta['files']),
    extras=extras,
    plain=meta['plain'],
  )
  return tokens, report
