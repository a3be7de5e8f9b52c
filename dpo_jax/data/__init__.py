"""Sources -> records -> tokens -> packed batches."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from absl import logging

from dpo_jax import registry
from dpo_jax.data import (
  corrections,
  mismatch,
  mixtures,
  sources,
  store,
  token_cache,
  token_rules,
)

check_fits = store.check_fits

# Options of a data section that one kind of record takes.
OF_KINDS = {'corrections': 'pairs', 'mismatch_seed': 'kto', 'turns': 'sft'}
# Options that every source and kind takes.
OF_ALL = ('chat',)

MIXTURE = 'mixture'


def load(section: Mapping[str, Any], *, tokenizer: Any) -> store.TokenRecords:
  """Token records of a config section, such as

    dict(source='jsonl', path='pairs.jsonl', kind='pairs', max_length=512,
         max_prompt_length=256, truncation='keep_end', bos='auto',
         max_drop_fraction=0.01)

    dict(source='mixture', max_length=512, max_prompt_length=256, parts=dict(
         hh=dict(source='hh', split='train', weight=0.7),
         own=dict(source='jsonl', path='pairs.jsonl', weight=0.3)))

  source: a key of `sources.SOURCES`; its options stand beside it, with those of
  `token_rules.resolve`, and max_drop_fraction: the share of rows that may be
  unusable. Or 'mixture', see mixtures.py: its parts are such sections, by name,
  taken in the order of their names; weight: the share of the examples, before
  all are scaled to sum to 1. Options beside `parts` are defaults of each part.
  corrections: a key of `corrections.CORRECTIONS` or None, with kind='pairs'
  alone: which tokens extras['corrected'] marks. mismatch_seed: with kind='kto'
  alone, by default 0; of the choice of mismatched completions. turns: with
  kind='sft' alone, 'last' (the default) or 'all': which answers of a
  conversation are scored, see chat/rendering.py. chat: whether prompts that are
  text are a user's message and completions the assistant's answer; by default
  text is used as it is.

  ValueError for an unknown option, for one of another kind, for more unusable
  rows, and for labelled examples all of one class.
  """
  options = dict(section.items())
  if options.get('source') == MIXTURE:
    tokens = _mixture(options, tokenizer)
  else:
    tokens = _load(options, tokenizer)
  desirable, undesirable = ((tokens.labels == x).sum() for x in (1, 0))
  rated = tokens.kind == 'rated'
  if not rated and bool(desirable) != bool(undesirable):
    raise ValueError(
      f'{tokens.where(0)} and on: {desirable} completions are desirable and '
      f'{undesirable} undesirable; kind={tokens.kind!r} needs some of both.'
    )
  return tokens


def _mixture(
  options: Mapping[str, Any], tokenizer: Any
) -> mixtures.MixedRecords:
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
  sections = dict(zip(sorted(parts), mixtures.part_sections(options)))
  for name, section in sections.items():
    if 'weight' not in section:
      raise ValueError(f'Part {name!r} of the mixture needs a weight.')
    if section.get('source') == MIXTURE:
      raise ValueError(f'Part {name!r} of the mixture is a mixture.')
  weights = {name: part.pop('weight') for name, part in sections.items()}
  mixtures.check_weights(weights)
  loaded = {}
  for name, section in sections.items():
    logging.info('Part %r of the mixture:', name)
    loaded[name] = _load(section, tokenizer)
  return mixtures.concatenate(loaded, weights)


def _load(section: Mapping[str, Any], tokenizer: Any) -> store.TokenRecords:
  """The token records of one source."""
  options = dict(section)
  if 'source' not in options:
    raise ValueError(
      f'A data section needs a source: {", ".join(sources.SOURCES)}, '
      f'{MIXTURE}. Given: {", ".join(options) or "nothing"}.'
    )
  name = options.pop('source')
  max_drop_fraction = options.pop('max_drop_fraction', 0.01)
  make = registry.lookup(
    {**sources.SOURCES, MIXTURE: None}, name, 'data source'
  )
  what = f'data source {name!r}'
  own = registry.options_of(make)
  of_rules = registry.options_of(token_rules.resolve)
  known = (*own, *of_rules, *OF_KINDS, *OF_ALL, 'max_drop_fraction')
  for option in options:
    if option not in known:
      raise registry.unknown(f'option of {what}', option, known)
  given = {n: v for n, v in options.items() if n in own}
  settings = {n: v for n, v in options.items() if n in of_rules}
  others = {n: v for n, v in options.items() if n in (*OF_KINDS, *OF_ALL)}
  others = {n: v for n, v in others.items() if v is not None}
  registry.bind(token_rules.resolve, settings, what)(tokenizer)
  kind = given.get('kind', own['kind'].default if 'kind' in own else 'sft')
  _check_kind_options(kind, others)
  make = registry.bind(make, given, what)
  source = make(tokenizer) if sources.takes_tokenizer(name) else make()
  mismatch_seed = others.pop('mismatch_seed', 0)
  found = token_cache.load(
    name,
    {n: given.get(n, p.default) for n, p in own.items()},
    source,
    tokenizer=tokenizer,
    settings=settings,
    **others,
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
    tokens, seed=mismatch_seed, max_length=settings['max_length']
  )


def _check_kind_options(kind: str, given: Mapping[str, Any]) -> None:
  for option, value in given.items():
    if OF_KINDS.get(option, kind) != kind:
      raise ValueError(
        f'{option}={value!r} belongs to kind={OF_KINDS[option]!r}; this is '
        f'kind={kind!r}.'
      )
  if 'corrections' in given:
    registry.lookup(
      corrections.CORRECTIONS, given['corrections'], 'corrections'
    )
  if not isinstance(given.get('chat', False), bool):
    raise ValueError(f'chat is {given["chat"]!r}; expected True or False.')
  registry.check_integer('mismatch_seed', given.get('mismatch_seed', 0), 0)
