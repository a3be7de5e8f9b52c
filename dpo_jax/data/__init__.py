"""Sources -> records -> tokens -> packed batches."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from absl import logging

from dpo_jax import registry
from dpo_jax.data import (
  cache,
  contract,
  mismatch,
  mixtures,
  segments,
  sources,
  store,
)

check_fits = store.check_fits

# Options of a data section that one kind of record takes.
OF_KINDS = {'segments': 'pairs', 'mismatch_seed': 'kto', 'turns': 'sft'}
# Options that every source and kind takes.
OF_ALL = ('chat',)

MIXTURE = 'mixture'
_NAMES = (*sources.SOURCES, MIXTURE)


def load(section: Mapping[str, Any], *, tokenizer: Any) -> store.TokenRecords:
  """Token records of a config section, such as

    dict(source='jsonl', path='pairs.jsonl', kind='pairs', max_length=512,
         max_prompt_length=256, truncation='keep_end', bos='auto',
         max_drop_fraction=0.01)

    dict(source='mixture', max_length=512, max_prompt_length=256, parts=dict(
         hh=dict(source='hh', split='train', weight=0.7),
         own=dict(source='jsonl', path='pairs.jsonl', weight=0.3)))

  source: a key of `sources.SOURCES`; its options stand beside it, with those of
  `contract.resolve`, and max_drop_fraction: the share of rows that may be
  unusable. Or 'mixture': see mixtures.py. Its parts are such sections, by name,
  and taken in the order of their names. weight: each one's share of the
  examples, before all are scaled to sum to 1; what else stands beside `parts`
  goes for every part that does not say otherwise.
  segments: a key of `segments.SEGMENTS` or None, with kind='pairs' alone: which
  tokens extras['corrected'] marks. mismatch_seed: with kind='kto' alone, by
  default 0; of the choice of mismatched completions. turns: with kind='sft'
  alone, 'last' (the default) or 'all': which answers of a conversation count,
  see rendering.py. chat: whether text is what a user says and the assistant
  answers; by default it is taken as it is.

  ValueError for an unknown option, for one of another kind, for more unusable
  rows, and for labelled examples all of one class.
  """
  options = dict(section.items())
  if options.get('source') == MIXTURE:
    tokens = _mixture(options, tokenizer)
  else:
    tokens = _load(options, tokenizer)
  _check_classes(tokens)
  return tokens


def _mixture(
  options: Mapping[str, Any], tokenizer: Any
) -> mixtures.MixedRecords:
  shared = {n: v for n, v in options.items() if n not in ('source', 'parts')}
  parts = options.get('parts')
  if not isinstance(parts, Mapping) or not parts:
    raise ValueError(
      'A mixture needs parts=dict(NAME=dict(source=..., weight=...), ...); '
      f'given: {parts!r}.'
    )
  for name, part in parts.items():
    if not isinstance(part, Mapping):
      raise ValueError(
        f'Part {name!r} of the mixture is no section with a source: {part!r}.'
      )
  weights, loaded = {}, {}
  sections = {name: {**shared, **parts[name]} for name in sorted(parts)}
  for name, section in sections.items():
    if 'weight' not in section:
      raise ValueError(f'Part {name!r} of the mixture needs a weight.')
    if section.get('source') == MIXTURE:
      raise ValueError(f'Part {name!r} of the mixture is a mixture.')
    weights[name] = section.pop('weight')
  mixtures.check_weights(weights)
  for name, section in sections.items():
    logging.info('Part %r of the mixture:', name)
    loaded[name] = _load(section, tokenizer)
  return mixtures.concatenate(loaded, weights)


def _load(section: Mapping[str, Any], tokenizer: Any) -> store.TokenRecords:
  """The token records of one source."""
  options = dict(section)
  if 'source' not in options:
    raise ValueError(
      f'A data section needs a source: {", ".join(_NAMES)}. Given: '
      f'{", ".join(options) or "nothing"}.'
    )
  name = options.pop('source')
  max_drop_fraction = options.pop('max_drop_fraction', 0.01)
  if name not in sources.SOURCES:
    raise registry.unknown('data source', name, _NAMES)
  make = sources.SOURCES[name]
  what = f'data source {name!r}'
  own = registry.options_of(make)
  given, settings, extra = _dealt(
    options,
    (own, registry.options_of(contract.resolve), (*OF_KINDS, *OF_ALL)),
    what,
  )
  registry.bind(contract.resolve, settings, what)(tokenizer)
  kind = given.get('kind', own['kind'].default if 'kind' in own else 'sft')
  extra = {n: v for n, v in extra.items() if v is not None}
  _check_kind_options(kind, extra)
  make = registry.bind(make, given, what)
  source = make(tokenizer) if sources.takes_tokenizer(name) else make()
  found = cache.tokenise_cached(
    name,
    {n: given.get(n, p.default) for n, p in own.items()},
    source,
    tokenizer=tokenizer,
    settings=settings,
    segments=extra.get('segments'),
    turns=extra.get('turns', 'last'),
    chat=extra.get('chat', False),
  )
  logging.info(
    'Data source %r, %s:\n%s',
    name,
    'from the cache' if found.hit else 'tokenised now',
    found.report.table(),
  )
  found.report.check(max_drop_fraction)
  tokens = dataclasses.replace(found.records, kind=kind)
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
    if OF_KINDS.get(option, kind) != kind:
      raise ValueError(
        f'{option}={value!r} belongs to kind={OF_KINDS[option]!r}; this is '
        f'kind={kind!r}.'
      )
  if 'segments' in given:
    registry.lookup(segments.SEGMENTS, given['segments'], 'segments')
  if not isinstance(given.get('chat', False), bool):
    raise ValueError(f'chat is {given["chat"]!r}; expected True or False.')
  registry.check_integer('mismatch_seed', given.get('mismatch_seed', 0), 0)


def _check_classes(tokens: store.TokenRecords) -> None:
  """ValueError for labels that are all the same."""
  desirable, undesirable = (int((tokens.labels == x).sum()) for x in (1, 0))
  if bool(desirable) != bool(undesirable):
    raise ValueError(
      f'{tokens.where(0)} and on: {desirable} completions are desirable and '
      f'{undesirable} undesirable; kind={tokens.kind!r} needs some of both.'
    )
