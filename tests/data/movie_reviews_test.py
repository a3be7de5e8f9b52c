"""Movie ratings, on the real file."""

import math

import pytest

from dpo_jax.chat import errors
from dpo_jax.data.sources import movie_reviews

pytestmark = pytest.mark.download


@pytest.fixture(scope='module')
def ratings(movie_file):
  """sentence -> rating, read again by other means."""
  out = {}
  for line in movie_file.read_bytes().decode().replace('\r', '').splitlines():
    _, rating, sentence = line.split('\t')
    out.setdefault(' ' + ' '.join(sentence.split()), []).append(float(rating))
  return {s: math.fsum(r) / len(r) for s, r in out.items()}


def rows(**options):
  return list(movie_reviews.movie_ratings(**options).rows(None))


def sentences_of(found):
  return [c for record in found for c in record.completions]


@pytest.mark.parametrize(
  ('group_size', 'min_gap'), [(2, 1.0), (4, 1.0), (4, 0.3), (6, 4.0)]
)
def test_groups(ratings, group_size, min_gap):
  found = rows(split='train', group_size=group_size, min_gap=min_gap)
  assert len(found) > 300
  used = sentences_of(found)
  assert len(set(used)) == len(used)
  for record in found:
    assert record.prompt == 'A sentence from a movie review:'
    value = [ratings[c] for c in record.completions]
    half = group_size // 2
    assert min(value[:half]) > 0.5 and max(value[half:]) < -0.5
    gaps = {
      (i, j): value[i] - value[j]
      for i in range(group_size)
      for j in range(group_size)
    }
    assert set(record.examples) == {
      pair for pair, gap in gaps.items() if gap >= min_gap
    }
    assert len(set(record.examples)) == len(record.examples) >= half * half


def test_splits_share_no_sentence(ratings):
  words = {}
  for split in movie_reviews.SPLITS:
    found = movie_reviews.movie_sentences(split=split).rows(None)
    words[split] = {c.casefold() for c in sentences_of(found)}
  train, test = words['train'], words['test']
  assert not train & test
  assert train | test == {s.casefold() for s in ratings}
  assert 0.08 < len(test) / len(ratings) < 0.12
  # Whatever the seed, and for groups as for sentences.
  for seed in (0, 1):
    used = sentences_of(rows(split='train', seed=seed))
    assert {c.casefold() for c in used} <= train
    used = sentences_of(rows(split='test', seed=seed, group_size=4))
    assert {c.casefold() for c in used} <= test


def test_larger_test_split_contains_the_smaller():
  small, large = (
    movie_reviews.movie_sentences(split='test', held_out_fraction=f).rows(None)
    for f in (0.1, 0.3)
  )
  assert set(sentences_of(small)) < set(sentences_of(large))


def test_the_seed_decides_all():
  first = rows(split='train', seed=3)
  assert rows(split='train', seed=3) == first
  other = rows(split='train', seed=4)
  # One pair in some 4,500 is the same by chance.
  assert len(set(other) & set(first)) < 10
  for side in (0, 1):
    a, b = ([r.completions[side] for r in found] for found in (first, other))
    assert sorted(a) != a != b


def test_praise_and_blame_are_shuffled_apart():
  sentences = [
    movie_reviews.Sentence(f'{i}', rating, i, '')
    for i in range(100)
    for rating in (1, -1)
  ]
  found = list(movie_reviews.groups(sentences, 1.0, 2, None, seed=0))
  assert len(found) == 100
  assert sum(praise.line == blame.line for praise, blame in found) < 10


def test_more_groups_than_one_pass():
  one = rows(split='test', group_size=4)
  three = rows(split='test', group_size=4, num_groups=3 * len(one))
  assert three[: len(one)] == one
  for turn in range(3):
    used = sentences_of(three[turn * len(one) : (turn + 1) * len(one)])
    assert len(set(used)) == len(used)
  assert len(set(three)) == len(three)
  assert rows(split='test', group_size=4, num_groups=5) == one[:5]


def test_rows_name_their_line(movie_file):
  lines = movie_file.read_text().split('\n')
  for record in rows(split='test')[:20]:
    sentence = lines[record.row - 1].split('\t')[2]
    assert f' {" ".join(sentence.split())}' == record.completions[0]
    assert record.file == movie_file.name


def test_equal_sentences_are_one(ratings, movie_file):
  splits = [
    movie_reviews.read_split(movie_file, split, 0.5)
    for split in movie_reviews.SPLITS
  ]
  found = {f' {s.text}': s.rating for split in splits for s in split}
  assert found == pytest.approx(ratings)
  assert sum(map(len, splits)) == len(found) == 10_603


def test_max_words_keeps_the_short_sentences(ratings):
  short = {s for s in ratings if len(s.split()) <= 9}
  for split in movie_reviews.SPLITS:
    source = movie_reviews.movie_sentences(split=split, max_words=9)
    found = set(sentences_of(source.rows(None)))
    whole = movie_reviews.movie_sentences(split=split).rows(None)
    assert found == short & set(sentences_of(whole))
  found = sentences_of(rows(split='train', group_size=4, max_words=9))
  assert len(found) > 1000
  assert set(found) <= short


@pytest.mark.parametrize('kind', ['unpaired', 'kto'])
def test_sentences_unpaired(ratings, kind):
  source = movie_reviews.movie_sentences(split='test', kind=kind, prompt='')
  found = list(source.rows(None))
  for record in found:
    assert record.labels == (ratings[record.completions[0]] > 0.5,)
    assert abs(ratings[record.completions[0]]) > 0.5
    assert record.prompt == ''
  labels = [label for record in found for label in record.labels]
  assert 0.4 < sum(labels) / len(labels) < 0.6


@pytest.mark.parametrize('kind', ['unpaired', 'kto'])
@pytest.mark.parametrize(('group_size', 'min_gap'), [(2, 1.0), (8, 0.5)])
def test_groups_unpaired(ratings, kind, group_size, min_gap):
  options = dict(split='test', group_size=group_size, min_gap=min_gap)
  found = rows(kind=kind, **options)
  groups = rows(**options)
  assert len(found) == len(groups) > 10
  for record, group in zip(found, groups):
    assert record.completions == group.completions
    assert record.labels == tuple(ratings[c] > 0 for c in record.completions)
    places = [i for (i,) in record.examples]
    assert sorted(places) == list(range(group_size))
    # Praise and blame take turns.
    turns = [record.labels[i] for i in places]
    assert turns == [True, False] * (group_size // 2)


def test_groups_ranked(ratings):
  found = rows(kind='ranking', split='test', group_size=4)
  groups = rows(split='test', group_size=4)
  ranked = [r for r in found if not isinstance(r, errors.RowError)]
  assert len(found) == len(groups) > len(ranked) > 0.5 * len(found)
  for record, group in zip(found, groups):
    given = [ratings[c] for c in group.completions]
    if isinstance(record, errors.RowError):
      assert record.reason == 'no_strict_order' and len(set(given)) < 4
      assert (record.file, record.row) == (group.file, group.row)
    else:
      (example,) = record.examples
      scores = [ratings[record.completions[i]] for i in example]
      assert scores == sorted(given, reverse=True) and len(set(scores)) == 4


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'split': 'tests'}, "Did you mean 'test'"),
    ({'group_size': 3}, 'group_size=3'),
    ({'kind': 'unpair'}, "movie_ratings 'unpair'.*Did you mean 'unpaired'"),
    ({'min_gap': 0.0}, 'min_gap=0.0'),
    ({'max_words': 0}, 'max_words is 0'),
    ({'num_groups': 0}, 'num_groups is 0'),
    ({'seed': -1}, 'seed is -1'),
    ({'held_out_fraction': 1.0}, 'held_out_fraction=1.0'),
    ({'min_gap': 8.0}, '0 sentences are rated above 4.0'),
  ],
)
def test_wrong_options(options, message):
  with pytest.raises(ValueError, match=message):
    rows(**({'split': 'train'} | options))


def test_wrong_file(tmp_path):
  path = tmp_path / 'ratings.txt'
  path.write_text('1\t2.0\tGood.\n2\tGood.\n')
  with pytest.raises(ValueError, match=r'ratings\.txt:2: .*rating'):
    rows(split='train', uri=str(path))
