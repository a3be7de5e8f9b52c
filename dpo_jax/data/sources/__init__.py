"""Where records come from: a name, its options, and the rows that they give.

A source is a function of keyword-only options. It finds its files, so that a
wrong path or option fails before anything is read, and returns a
`rows.RecordSource`. A source that cuts text by tokens takes the run's
tokenizer before its options.

A data set's module says how github.com/eric-mitchell/direct-preference-
optimization treats it, and what is done otherwise here.
"""

import inspect
from collections.abc import Callable

from dpo_jax.data.sources import (
  dialogues,
  human_votes,
  imdb,
  movie_reviews,
  row_formats,
  rows,
  stack_exchange,
  summaries,
  tfds_files,
  ultrafeedback,
)

SOURCES: dict[str, Callable[..., rows.RecordSource]] = {
  'jsonl': row_formats.jsonl,
  'parquet': row_formats.parquet,
  'tfds': tfds_files.tfds,
  'finegrained_rlhf': human_votes.finegrained_rlhf,
  'hh': dialogues.hh,
  'imdb_prompts': imdb.imdb_prompts,
  'imdb_reviews': imdb.imdb_reviews,
  'movie_ratings': movie_reviews.movie_ratings,
  'movie_sentences': movie_reviews.movie_sentences,
  'pandalm': human_votes.pandalm,
  'shp': dialogues.shp,
  'stack_exchange': stack_exchange.stack_exchange,
  'tldr_comparisons': summaries.tldr_comparisons,
  'tldr_sft': summaries.tldr_sft,
  'ultrafeedback': ultrafeedback.ultrafeedback,
  'ultrafeedback_ratings': ultrafeedback.ultrafeedback_ratings,
}


def takes_tokenizer(name: str) -> bool:
  """Whether a source takes the run's tokenizer, before its options."""
  first, *_ = inspect.signature(SOURCES[name]).parameters.values()
  return first.kind is first.POSITIONAL_OR_KEYWORD
