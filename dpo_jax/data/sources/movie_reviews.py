"""Sentences of movie reviews, rated by people from very bad to very good.

C.J. Hutto and E. Gilbert, VADER: A Parsimonious Rule-based Model for Sentiment
Analysis of Social Media Text, ICWSM 2014: the mean of some 20 ratings in
[-4, 4] of each of 10,605 sentences. The sentences come from the reviews of
B. Pang and L. Lee, A Sentimental Education, ACL 2004.

A line of the file is an id, the mean rating and the sentence, between tabs.
Repeated spaces are removed; sentences equal but for case and punctuation are
one, with the mean of their ratings. Whether a sentence is in 'train' or 'test'
depends on its words and `held_out_fraction` alone, so that pairs and single
sentences split alike.
"""

import itertools
import pathlib
import re
from collections.abc import Iterator
from typing import NamedTuple

from dpo_jax import assets, registry
from dpo_jax.chat import errors
from dpo_jax.data import order
from dpo_jax.data.sources import rows

PROMPT = 'A sentence from a movie review:'
SPLITS = ('train', 'test')
# Sentences rated within this of 0 are neither good nor bad, as in the paper.
NEUTRAL = 0.5


class Sentence(NamedTuple):
  """A sentence, its mean rating in [-4, 4], its line and id in the file."""

  text: str
  rating: float
  line: int
  id: str


def movie_ratings(
  *,
  split: str,
  kind: str = 'pairs',
  prompt: str = PROMPT,
  min_gap: float = 1.0,
  max_words: int | None = None,
  group_size: int = 2,
  num_groups: int | None = None,
  seed: int = 0,
  held_out_fraction: float = 0.1,
  uri: str = assets.MOVIE_REVIEWS,
) -> rows.RecordSource:
  """Groups of sentences, half praise and half blame, as continuations.

  Preferences are all pairs of a group whose ratings differ by `min_gap` or
  more. Halves are rated above max(0.5, min_gap / 2) and below its negative, so
  that at least these pairs are made. A group's row is that of its first
  sentence.

  kind: 'pairs'; 'ranking' of the whole group by its ratings, where no two are
  the same; 'unpaired' or 'kto' for each sentence by itself: praise is desirable
  and blame is not.
  max_words: of a sentence; None for any length.
  num_groups: None for as many as there are with no sentence used twice; after
  that many, sentences are shuffled and used again.
  """
  if group_size < 2 or group_size % 2:
    raise ValueError(
      f'group_size={group_size}: half of a group is praise, half is blame; '
      'expected an even number of 2 or more.'
    )
  if not 0 < min_gap <= 8:
    raise ValueError(
      f'min_gap={min_gap}: ratings are in [-4, 4]; expected 0 < min_gap <= 8.'
    )
  if num_groups is not None:
    registry.check_integer('num_groups', num_groups, 1)
  registry.check_integer('seed', seed, 0)

  def values(sentences):
    for group in groups(sentences, min_gap, group_size, num_groups, seed):
      ratings = [s.rating for s in group]
      value = {'prompt': prompt, 'completions': [f' {s.text}' for s in group]}
      if kind == 'ranking':
        value['scores'] = ratings
      else:
        value['preferences'] = [
          [i, j]
          for i, j in itertools.permutations(range(group_size), 2)
          if ratings[i] - ratings[j] >= min_gap
        ]
      yield group[0].line, value

  kinds = ('pairs', 'ranking', 'unpaired', 'kto')
  registry.lookup(dict.fromkeys(kinds), kind, 'kind of movie_ratings')
  return _source(values, kind, split, held_out_fraction, max_words, uri)


def movie_sentences(
  *,
  split: str,
  kind: str = 'sft',
  prompt: str = PROMPT,
  max_words: int | None = None,
  held_out_fraction: float = 0.1,
  uri: str = assets.MOVIE_REVIEWS,
) -> rows.RecordSource:
  """Single sentences as continuations of the prompt, in the file's order.

  kind: 'sft' or 'prompts' for all of them; 'unpaired' or 'kto' for those rated
  above 0.5, which are desirable, and below -0.5, which are not.
  max_words: of a sentence; None for any length.
  """

  def values(sentences):
    for sentence in sentences:
      value = {'prompt': prompt, 'completion': f' {sentence.text}'}
      if kind in ('unpaired', 'kto'):
        if abs(sentence.rating) <= NEUTRAL:
          continue
        value['label'] = sentence.rating > 0
      yield sentence.line, value

  kinds = ('sft', 'prompts', 'unpaired', 'kto')
  registry.lookup(dict.fromkeys(kinds), kind, 'kind of movie_sentences')
  return _source(values, kind, split, held_out_fraction, max_words, uri)


def _source(
  values, kind, split, held_out_fraction, max_words, uri
) -> rows.RecordSource:
  """The rows (line, value) that `values` makes of a split's sentences."""
  rows.check_split(split, held_out_fraction, SPLITS)
  if max_words is not None:
    registry.check_at_least('max_words', max_words, 1)
  path = assets.resolve(uri)

  def read():
    sentences = [
      s
      for s in read_split(path, split, held_out_fraction)
      if max_words is None or len(s.text.split()) <= max_words
    ]
    for line, value in values(sentences):
      yield rows.Row(value, path.name, line)

  return rows.source([(path.name, path)], read, lambda row: row, kind=kind)


def read_split(
  path: pathlib.Path, split: str, held_out_fraction: float
) -> list[Sentence]:
  """The distinct sentences of a split, in the file's order."""
  found: dict[str, list[Sentence]] = {}
  for sentence in lines(path, split, held_out_fraction):
    found.setdefault(_words(sentence.text), []).append(sentence)
  return [
    same[0]._replace(rating=sum(s.rating for s in same) / len(same))
    for same in found.values()
  ]


def lines(
  path: pathlib.Path, split: str, held_out_fraction: float
) -> Iterator[Sentence]:
  """Every line of a split, equal sentences included."""
  content = path.read_text(encoding='utf-8').split('\n')
  for number, line in enumerate(content, start=1):
    if line.strip():
      sentence = _sentence(line, path.name, number)
      held_out = rows.share(_words(sentence.text)) < held_out_fraction
      if held_out == (split == 'test'):
        yield sentence


def groups(
  sentences: list[Sentence],
  min_gap: float,
  group_size: int,
  num_groups: int | None,
  seed: int,
) -> Iterator[list[Sentence]]:
  """Groups of praise, then blame, drawn without replacement in each pass."""
  least = max(NEUTRAL, min_gap / 2)
  praise = [s for s in sentences if s.rating > least]
  blame = [s for s in sentences if s.rating < -least]
  half = group_size // 2
  per_pass = min(len(praise), len(blame)) // half
  if not per_pass:
    raise ValueError(
      f'{len(praise)} sentences are rated above {least} and {len(blame)} below '
      f'{-least}: too few for half of group_size={group_size}. Lower min_gap '
      f'or group_size, or change held_out_fraction.'
    )
  for g in range(per_pass if num_groups is None else num_groups):
    turn, place = divmod(g, per_pass)
    if not place:
      good = order.epoch_order(len(praise), seed, 2 * turn)
      bad = order.epoch_order(len(blame), seed, 2 * turn + 1)
    span = slice(place * half, (place + 1) * half)
    yield [praise[i] for i in good[span]] + [blame[i] for i in bad[span]]


def _sentence(line: str, name: str, number: int) -> Sentence:
  try:
    key, rating, text = line.split('\t')
    return Sentence(' '.join(text.split()), float(rating), number, key)
  except ValueError as e:
    raise ValueError(
      f'{name}:{number}: expected an id, a rating and a sentence between tabs; '
      f'given: {errors.show(line)}'
    ) from e


def _words(text: str) -> str:
  return ' '.join(re.findall(r'\w+', text.casefold()))
