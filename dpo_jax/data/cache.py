"""Token records on disk, under a key of all that they were made from.

An entry is a directory: one .npy file for each array of `store.TokenRecords`,
its extras and what is scored included, and meta.json with their checksums, what
is no array of it, and the drop report. It is renamed into place when it
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
from dpo_jax.data import contract, drops, records, rendering, store, tokenise
from dpo_jax.data import segments as segments_lib

# Of the entries and of what they mean: raise it when either changes.
VERSION = 6


class Cached(NamedTuple):
  """Token records, what was dropped, and whether the cache had them."""

  records: store.TokenRecords
  report: drops.DropReport
  hit: bool


def tokenise_cached(
  name: str,
  options: Mapping[str, Any],
  source: records.Source,
  *,
  tokenizer: Any,
  settings: Mapping[str, Any],
  segments: str | None = None,
  turns: str = 'last',
  chat: bool = False,
) -> Cached:
  """Token records of a source, from the cache or made and left there.

  name, options: of `source`. settings: keyword arguments of
  `contract.resolve`. segments: a key of `segments.SEGMENTS`. turns, chat: as
  in `rendering.Render`. A damaged entry is made again, with a warning.
  """
  registry.lookup(rendering.TURNS, turns, 'turns')
  rules = contract.resolve(tokenizer, **settings)
  ways = {'segments': segments, 'turns': turns, 'chat': chat}
  entry = key(name, options, source, tokenizer, settings, ways)
  target = assets.cache_dir('tokens') / entry
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
  rows = source.rows(render)
  mark = segments and segments_lib.SEGMENTS[segments](tokenizer)
  tokens, report = tokenise.tokenise(rows, tokenizer, rules, mark)
  if not len(tokens):
    return Cached(tokens, report, hit=False)
  try:
    with assets.atomic_path(target) as temp:
      write(temp, tokens, report)
  except FileExistsError:
    logging.info('Another process wrote %s first.', target)
  return Cached(*read(target), hit=False)


def key(
  name: str,
  options: Mapping[str, Any],
  source: records.Source,
  tokenizer: Any,
  settings: Mapping[str, Any],
  ways: Mapping[str, Any],
) -> str:
  """SHA-256, in hex, of all that token records depend on."""
  defaults = registry.options_of(contract.resolve)
  content = {
    'version': VERSION,
    'source': name,
    'options': dict(options),
    'files': [[n, assets.sha256_file(path)] for n, path in source.files],
    'tokenizer': tokenizer.fingerprint,
    'settings': {n: settings.get(n, p.default) for n, p in defaults.items()},
    **ways,
  }
  text = json.dumps(content, sort_keys=True, default=str)
  return hashlib.sha256(text.encode()).hexdigest()


def write(
  folder: pathlib.Path, tokens: store.TokenRecords, report: drops.DropReport
) -> None:
  """Writes an entry into a new directory."""
  folder.mkdir()
  arrays = {name: getattr(tokens, name) for name in store.ARRAYS}
  if tokens.scored is not None:
    arrays['scored'] = tokens.scored
  for name, array in {**arrays, **tokens.extras}.items():
    np.save(folder / f'{name}.npy', array)
  sums = {p.stem: assets.sha256_file(p) for p in sorted(folder.iterdir())}
  meta = {
    'version': VERSION,
    'arrays': sums,
    'extras': list(tokens.extras),
    'files': tokens.files,
    'plain': tokens.plain,
    'report': report.to_json(),
  }
  (folder / 'meta.json').write_text(json.dumps(meta, indent=2))


def read(
  folder: pathlib.Path,
) -> tuple[store.TokenRecords, drops.DropReport]:
  """An entry, memory-mapped; ValueError or OSError for a damaged one."""
  meta = json.loads((folder / 'meta.json').read_text())
  arrays = {}
  for name in meta['arrays']:
    path = folder / f'{name}.npy'
    if assets.sha256_file(path) != meta['arrays'][name]:
      raise ValueError(f'{path.name} does not match its checksum')
    # A plain view: a numpy.memmap is slow to slice.
    arrays[name] = np.asarray(np.load(path, mmap_mode='r'))
  report = drops.DropReport.from_json(meta['report'])
  extras = {name: arrays.pop(name) for name in meta['extras']}
  tokens = store.TokenRecords(
    **arrays,
    files=tuple(meta['files']),
    extras=extras,
    plain=meta['plain'],
  )
  return tokens, report
