"""Sources -> records -> tokens -> packed batches."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from absl import logging

from dpo_jax import registry
from dpo_jax.data import (
  cache,
  mismatch,
  segments,
  sources,
  store,
  tokenise,
)

check_fits = store.check_fits

# Options of a data section that one kind of record takes.
OF_KINDS = {'segments': 'pairs', 'mismatch_seed': 'kto'}


def load(section: Mapping[str, Any], *, tokenizer: Any) -> store.TokenRecords:
  """Token records of a config section, such as

    dict(source='jsonl', path='pairs.jsonl', kind='pairs', max_length=512,
         max_prompt_length=256, truncation='keep_end', bos='auto',
         max_drop_fraction=0.01)

  source: a key of `sources.SOURCES`; its options stand beside it, with those of
  `tokenise.contract`, and max_drop_fraction: the share of rows that may be
  unusable.
  segments: a key of `segments.SEGMENTS` or None, with kind='pairs' alone: which
  tokens extras['corrected'] marks. mismatch_seed: with kind='kto' alone, by
  default 0; of the choice of mismatched completions.

  ValueError for an unknown option, for one of another kind, for more unusable
  rows, and for labelled examples all of one class.
  """
  options = dict(section.items())
  if 'source' not in options:
    raise ValueError(
      f'A data section needs a source: {", ".join(sources.SOURCES)}. Given: '
      f'{", ".join(options) or "nothing"}.'
    )
  name = options.pop('source')
  max_drop_fraction = options.pop('max_drop_fraction', 0.01)
  make = registry.lookup(sources.SOURCES, name, 'data source')
  what = f'data source {name!r}'
  own = registry.options_of(make)
  given, settings, extra = _dealt(
    options, (own, registry.options_of(tokenise.contract), OF_KINDS), what
  )
  registry.bind(tokenise.contract, settings, what)
  source = registry.bind(make, given, what)()
  given = {n: given.get(n, p.default) for n, p in own.items()}
  kind = given['kind']
  extra = {n: v for n, v in extra.items() if v is not None}
  _check_kind_options(kind, extra)
  found = cache.tokenise_cached(
    name,
    given,
    source,
    tokenizer=tokenizer,
    settings=settings,
    segments=extra.get('segments'),
  )
  logging.info(
    'Data source %r, %s:\n%s',
    name,
    'from the cache' if found.hit else 'tokenised now',
    found.report.table(),
  )
  found.report.check(max_drop_fraction)
  tokens = dataclasses.replace(found.records, kind=kind)
  _check_classes(tokens)
  if kind != 'kto':
    return tokens
  return mismatch.attach(
    tokens,
    seed=extra.get('mismatch_seed', 0),
    max_length=settings['max_length'],
  )


def _dealt(
  options: Mapping[str, Any], takers: Sequence[Collection[str]], what: str
) -> list[dict[str, Any]]:
  """The options that each of the takers knows; ValueError if none does."""
  known = [n for taker in takers for n in taker]
  for option in options:
    if option not in known:
      known.append('max_drop_fraction')
      raise registry.unknown(f'option of {what}', option, known)
  return [{n: v for n, v in options.items() if n in t} for t in takers]


def _check_kind_options(kind: str, given: Mapping[str, Any]) -> None:
  for option, value in given.items():
    if OF_KINDS[option] != kind:
      raise ValueError(
        f'{option}={value!r} belongs to kind={OF_KINDS[option]!r}; this is '
        f'kind={kind!r}.'
      )
  if 'segments' in given:
    registry.lookup(segments.SEGMENTS, given['segments'], 'segments')
  seed = given.get('mismatch_seed', 0)
  if type(seed) is not int or seed < 0:
    raise ValueError(f'mismatch_seed={seed!r}: expected an integer from 0 on.')


def _check_classes(tokens: store.TokenRecords) -> None:
  """ValueError for labels that are all the same."""
  desirable, undesirable = (int((tokens.labels == x).sum()) for x in (1, 0))
  if bool(desirable) != bool(undesirable):
    raise ValueError(
      f'{tokens.where(0)} and on: {desirable} completions are desirable and '
      f'{undesirable} undesirable; kind={tokens.kind!r} needs some of both.'
    )
