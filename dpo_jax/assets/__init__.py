"""Asset URIs to local files, the cache, whole writes, careful reads."""

from dpo_jax.assets.files import (
  atomic_path,
  cache_dir,
  check_cache,
  damaged,
  ends,
  local_path,
  read_gguf,
  read_json,
  read_text,
  sha256_file,
)
from dpo_jax.assets.finding import File, files_inside, find_files, listing
from dpo_jax.assets.hub import pinned
from dpo_jax.assets.resolving import (
  AMAZON_REVIEWS,
  ASSETS,
  GEMMA3_270M,
  MOVIE_REVIEWS,
  NYT_EDITORIALS,
  SMOLLM2,
  TWEETS,
  Asset,
  resolve,
)

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
  'ends',
  'files_inside',
  'find_files',
  'listing',
  'local_path',
  'pinned',
  'read_gguf',
  'read_json',
  'read_text',
  'resolve',
  'sha256_file',
]
