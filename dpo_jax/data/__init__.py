"""Sources -> records -> tokens -> packed batches."""

from collections.abc import Mapping
from typing import Any

from absl import logging

from dpo_jax import registry
from dpo_jax.data import cache, sources, store, tokenise

check_fits = store.check_fits


def load(section: Mapping[str, Any], *, tokenizer: Any) -> store.TokenRecords:
  """Token records of a config section, such as

    dict(source='jsonl', path='pairs.jsonl', kind='pairs', max_length=512,
         max_prompt_length=256, truncation='keep_end', bos='auto',
         max_drop_fraction=0.01)

  source: a key of `sources.SOURCES`; its options stand beside it, with those of
  `tokenise.contract`, and max_drop_fraction: the share of rows that may be
  unusable. ValueError for an unknown option, and for more unusable rows.
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
  shared = registry.options_of(tokenise.contract)
  for option in options:
    if option not in own and option not in shared:
      known = (*own, *shared, 'max_drop_fraction')
      raise registry.unknown(f'option of {what}', option, known)
  given = {n: v for n, v in options.items() if n in own}
  settings = {n: v for n, v in options.items() if n in shared}
  registry.bind(tokenise.contract, settings, what)
  source = registry.bind(make, given, what)()
  given = {n: given.get(n, p.default) for n, p in own.items()}
  found = cache.tokenise_cached(
    name, given, source, tokenizer=tokenizer, settings=settings
  )
  logging.info(
    'Data source %r, %s:\n%s',
    name,
    'from the cache' if found.hit else 'tokenised now',
    found.report.table(),
  )
  found.report.check(max_drop_fraction)
  return found.records
