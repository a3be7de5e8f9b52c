"""Reviews of films: the data of the DPO paper's controlled sentiment study.

A. Maas et al., ACL 2011, from TFDS `imdb_reviews/plain_text`: 25,000 reviews to
train on, as many to test, and 50,000 more ('unsupervised'). Appendix C.1 of
arXiv:2305.18290 tunes GPT-2 large on reviews, then completes prefixes of 2 to 8
tokens of 25,000 of them. That code was not published. Text is left as it is,
with its '<br />'; TRL's example, which the appendix refers to, also leaves out
reviews of 200 characters or fewer.

TFDS reads them without TensorFlow, but needs it to prepare them. The hub's copy
has the same reviews in Parquet files, in another order: path=HUB.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from dpo_jax import assets, registry
from dpo_jax.chat import errors
from dpo_jax.data.sources import files, hub_files, rows, tfds_files

NAME = 'imdb_reviews/plain_text'
HUB = 'hf://datasets/stanfordnlp/imdb'
_FILES = (('plain_text/{split}-*.parquet',),)
_SPLITS = ('train', 'test', 'unsupervised')
# A prefix of 8 tokens lies well within these.
_CHARACTERS_PER_TOKEN = 32
_CHUNK = 1024


def imdb_reviews(
  *,
  split: str,
  kind: str = 'sft',
  data_dir: str | None = None,
  path: str | None = None,
) -> rows.RecordSource:
  """Whole reviews, as completions of an empty prompt.

  split: 'train', 'test' or 'unsupervised'. data_dir: as in `tfds_files.tfds`.
  path: a repository laid out like `HUB`, instead of TFDS. kind: 'sft', or
  'unpaired', where positive reviews are desirable; unsupervised ones have no
  label.
  """
  registry.lookup({'sft': 0, 'unpaired': 0}, kind, 'kind of imdb_reviews')
  found, read = _reviews(split, data_dir, path)

  def rule(row):
    value = {'text': rows.text_of(row, 'text')}
    if kind == 'unpaired' and row.get('label') in (0, 1):
      value['label'] = bool(row['label'])
    return value

  return rows.source(found, read, rule, kind=kind)


def imdb_prompts(
  tokenizer: Any,
  *,
  split: str,
  kind: str = 'sft',
  min_tokens: int = 2,
  max_tokens: int = 8,
  seed: int = 0,
  data_dir: str | None = None,
  path: str | None = None,
) -> rows.RecordSource:
  """The first few tokens of each review, and the rest as the completion.

  kind: 'sft', or 'prompts' without the rest. The number of tokens is uniform
  from min_tokens to max_tokens, and depends on the seed and the row alone. A
  prefix that would end within a character takes a token more. Other options are
  those of `imdb_reviews`.
  """
  registry.lookup({'sft': 0, 'prompts': 0}, kind, 'kind of imdb_prompts')
  registry.check_integer('min_tokens', min_tokens, 1)
  registry.check_integer('max_tokens', max_tokens, min_tokens)
  registry.check_integer('seed', seed, 0)
  found, read = _reviews(split, data_dir, path)

  def prefixes():
    lengths = _lengths(min_tokens, max_tokens, seed)
    return _prefixes(read(), tokenizer, lengths, max_tokens)

  return rows.source(found, prefixes, lambda row: row, kind=kind)


def _reviews(
  split: str, data_dir: str | None, path: str | None
) -> tuple[list[assets.File], Callable[[], Iterator[rows.Item]]]:
  """(files, () -> rows with the fields text and label) of a split."""
  if path is None:
    return tfds_files.reader(NAME, split, data_dir)
  if data_dir is not None:
    raise ValueError(
      f'data_dir={data_dir!r} is for TFDS, path={path!r} is instead of it: '
      'give one of them.'
    )
  found = hub_files.find(path, _FILES, split=split, splits=_SPLITS)
  return found, files.reader(found, ('text', 'label'))


def _lengths(least: int, most: int, seed: int) -> Iterator[int]:
  """Tokens of the prefix of each row, uniform to within 2^-60."""
  bits = np.random.Philox(key=np.array([seed, 0], np.uint64))
  while True:
    for raw in bits.random_raw(_CHUNK):
      yield least + int(raw % np.uint64(most - least + 1))


def _prefixes(items, tokenizer, lengths, max_tokens) -> Iterator[rows.Item]:
  # Only the beginning of a review is needed.
  limit = _CHARACTERS_PER_TOKEN * (max_tokens + 1)
  while chunk := list(itertools.islice(items, _CHUNK)):
    texts = [str(row.value.get('text') or '') for row in chunk]
    encoded = tokenizer.encode_parts([t[:limit] for t in texts], start=True)
    for row, text, ids, n in zip(chunk, texts, encoded, lengths):
      try:
        cut = _cut(text, ids, n, tokenizer)
      except errors.RowError as error:
        yield row.error(error)
      else:
        value = {'prompt': text[:cut], 'completion': text[cut:]}
        yield row._replace(value=value)


def _cut(text: str, ids: list[int], n: int, tokenizer: Any) -> int:
  """Where the text of the first n tokens ends, or those of a few more."""
  for count in range(n, len(ids)):
    prefix = tokenizer.decode(ids[:count])
    if text.startswith(prefix):
      return len(prefix)
  raise errors.RowError(
    'no_prefix',
    f'of its {len(ids)} tokens, none from {n} on ends a prefix of the text',
  )
