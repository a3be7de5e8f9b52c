"""TFDS data sets in array_record files, and our own, without TensorFlow."""

import math
import subprocess
import sys
import textwrap

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds

from dpo_jax import data
from dpo_jax.chat import errors, rendering
from dpo_jax.data import records, sources
from dpo_jax.data.sources import imdb, movie_reviews, tfds_files
from tests import templates

TEXTS = [
  f'A film {i}<br /><br />with a plot, {"and " * (i % 5)}then an end.'
  for i in range(40)
]


class ImdbReviews(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """The features, the name and the splits of TFDS's imdb_reviews."""

  VERSION = tfds.core.Version('1.0.0')
  BUILDER_CONFIGS = [tfds.core.BuilderConfig(name='plain_text')]  # noqa: RUF012
  TEXTS = TEXTS

  def _info(self):
    features = {
      'text': tfds.features.Text(),
      'label': tfds.features.ClassLabel(names=['neg', 'pos']),
    }
    return tfds.core.DatasetInfo(
      builder=self, features=tfds.features.FeaturesDict(features)
    )

  def _split_generators(self, dl_manager):
    return {
      'train': self._generate_examples(0),
      'test': self._generate_examples(20),
    }

  def _generate_examples(self, first):
    for i, text in enumerate(self.TEXTS[first : first + 20], first):
      yield i, {'text': text, 'label': i % 2}


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  folder = tmp_path_factory.mktemp('tfds')
  builder = ImdbReviews(
    config='plain_text', data_dir=str(folder), file_format='array_record'
  )
  builder.download_and_prepare()
  return str(folder)


def read(source):
  """(records, {row: reason of a dropped row})."""
  items = list(source.rows(rendering.Render(templates.Plain())))
  bad = {i.row: i.reason for i in items if isinstance(i, errors.RowError)}
  return [i for i in items if isinstance(i, records.Record)], bad


def test_whole_reviews(data_dir):
  source = imdb.imdb_reviews(split='train', data_dir=data_dir)
  found, bad = read(source)
  assert not bad
  # TFDS shuffles what it writes.
  assert sorted(r.completions[0] for r in found) == sorted(TEXTS[:20])
  assert {r.prompt for r in found} == {''}
  assert [r.row for r in found] == list(range(1, 21))
  assert found[0].file == 'imdb_reviews/plain_text:train'
  names = [name for name, _ in source.files]
  assert names[-1] == 'features.json'
  assert 'train.array_record' in names[0]


def test_any_data_set_by_its_columns(data_dir, monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', data_dir)
  options = dict(
    name='imdb_reviews/plain_text:1.0.0',
    kind='unpaired',
    columns={'prompt': 'text', 'completion': 'text'},
  )
  found, bad = read(tfds_files.tfds(split='test[:5]', **options))
  assert len(found) == 0 and len(bad) == 5  # No label, so nothing to learn.
  options['columns'] |= {'label': 'label'}
  _, bad = read(tfds_files.tfds(split='test', **options))
  # A class is a number, not true or false.
  assert set(bad.values()) == {'wrong_type'}
  options |= dict(kind='sft', columns={'text': 'text'})
  found, _ = read(tfds_files.tfds(split='test[:25%]', **options))
  assert len(found) == 5


def test_prefixes(data_dir, make_tokenizer):
  tokenizer = make_tokenizer()

  def prefixes(**options):
    source = imdb.imdb_prompts(
      tokenizer, split='train', data_dir=data_dir, **options
    )
    return read(source)

  found, bad = prefixes()
  assert not bad and len(found) == 20
  whole, _ = read(imdb.imdb_reviews(split='train', data_dir=data_dir))
  for record, review in zip(found, whole):
    text = record.prompt + record.completions[0]
    assert text == review.completions[0]
    n = len(tokenizer.encode(record.prompt))
    assert 2 <= n <= 8
    assert tokenizer.encode(record.prompt) == tokenizer.encode(text)[:n]
  assert len({len(tokenizer.encode(r.prompt)) for r in found}) > 3
  # The seed decides, and the row.
  assert prefixes() == (found, bad)
  assert prefixes(seed=1)[0] != found
  (five, _) = prefixes(min_tokens=5, max_tokens=5)
  assert {len(tokenizer.encode(r.prompt)) for r in five} == {5}
  found, bad = prefixes(min_tokens=500, max_tokens=500)
  assert not found and set(bad.values()) == {'no_prefix'}


def test_lengths_are_uniform():
  lengths = imdb._lengths(2, 8, 0)
  drawn = [next(lengths) for _ in range(7000)]
  counts = np.bincount(drawn, minlength=9)[2:]
  assert counts.sum() == 7000 and abs(counts - 1000).max() < 5 * 30


def test_a_prefix_ends_with_a_character(make_tokenizer):
  tokenizer = make_tokenizer()
  text = '日本語の映画でした'
  ids = tokenizer.encode(text)
  assert len(ids) == 3 * len(text)  # Bytes.
  for n in range(1, len(ids) - 3):
    cut = imdb._cut(text, ids, n, tokenizer)
    assert cut == math.ceil(n / 3)


def test_what_decodes_to_other_text_is_no_prefix():
  class Spaced:
    def decode(self, ids):
      return '  '.join(ids)

  text = 'one two three'
  assert imdb._cut(text, text.split(), 1, Spaced()) == 3
  with pytest.raises(errors.RowError, match='no_prefix'):
    imdb._cut(text, text.split(), 2, Spaced())


def test_labelled_reviews(data_dir):
  source = imdb.imdb_reviews(split='train', kind='unpaired', data_dir=data_dir)
  found, bad = read(source)
  assert not bad and len(found) == 20
  for record in found:
    assert record.examples == ((0,),) and record.prompt == ''
    assert record.labels == (TEXTS.index(record.completions[0]) % 2 == 1,)
  with pytest.raises(ValueError, match=r"'pairs'.*unpaired"):
    imdb.imdb_reviews(split='train', kind='pairs', data_dir=data_dir)


def test_reviews_of_the_hub(tmp_path, make_tokenizer):
  folder = tmp_path / 'plain_text'
  folder.mkdir()
  rows = [{'text': x, 'label': i % 2 - (i > 30)} for i, x in enumerate(TEXTS)]
  pq.write_table(
    pa.Table.from_pylist(rows), folder / 'train-00000-of-00001.parquet'
  )
  options = dict(split='train', path=str(tmp_path))
  found, _ = read(imdb.imdb_reviews(**options))
  assert [r.completions[0] for r in found] == TEXTS
  found, bad = read(imdb.imdb_reviews(kind='unpaired', **options))
  assert [r.labels for r in found][:2] == [(False,), (True,)]
  # -1 is no label.
  assert bad and set(bad.values()) == {'missing_field'}
  found, _ = read(imdb.imdb_prompts(make_tokenizer(), **options))
  assert [r.prompt + r.completions[0] for r in found] == TEXTS
  alone, _ = read(
    imdb.imdb_prompts(make_tokenizer(), kind='prompts', **options)
  )
  assert [r.prompt for r in alone] == [r.prompt for r in found]
  assert all(r.alone for r in alone) and not any(r.alone for r in found)
  with pytest.raises(ValueError, match='give one of them'):
    imdb.imdb_reviews(data_dir='x', **options)


def test_prompts_through_a_section(
  data_dir, make_tokenizer, tmp_path, monkeypatch
):
  """The source that takes the tokenizer."""
  monkeypatch.setenv('DPO_JAX_CACHE', str(tmp_path))
  section = dict(
    source='imdb_prompts',
    split='test',
    data_dir=data_dir,
    max_length=100,
    max_prompt_length=10,
  )
  tokens = data.load(section, tokenizer=make_tokenizer())
  assert len(tokens) == 20 and tokens.kind == 'sft'
  assert tokens.prompt_lengths.max() <= 8
  alone = data.load(section | {'kind': 'prompts'}, tokenizer=make_tokenizer())
  assert alone.kind == 'prompts' and alone.span_lengths.max() <= 8
  np.testing.assert_array_equal(alone.prompt_lengths, tokens.prompt_lengths)
  with pytest.raises(ValueError, match="Unknown kind of imdb_prompts 'pairs'"):
    data.load(section | {'kind': 'pairs'}, tokenizer=make_tokenizer())


@pytest.mark.parametrize(
  ('options', 'error', 'message'),
  [
    ({'split': 'tran'}, ValueError, "split 'tran'"),
    ({'name': 'imdb_review'}, ValueError, "Did you mean 'imdb_reviews'"),
    ({'kind': 'stf'}, ValueError, "Did you mean 'sft'"),
    ({'columns': {'txt': 'text'}}, ValueError, "Did you mean 'text'"),
  ],
)
def test_wrong_options(data_dir, options, error, message):
  given = dict(
    name='imdb_reviews/plain_text',
    split='train',
    kind='sft',
    columns={'text': 'text'},
    data_dir=data_dir,
  )
  with pytest.raises(error, match=message):
    tfds_files.tfds(**given | options)


def test_what_cannot_be_prepared_says_what_to_set(tmp_path, monkeypatch):
  def offline(self):
    raise ConnectionError('no network')

  monkeypatch.setattr(tfds.core.DatasetBuilder, 'download_and_prepare', offline)
  with pytest.raises(FileNotFoundError) as e:
    imdb.imdb_reviews(split='train', data_dir=str(tmp_path))
  for said in (
    'no network',
    'TFDS_DATA_DIR',
    'imdb_reviews/plain_text/',
    'array_record',
  ):
    assert said in str(e.value)


WITHOUT_TENSORFLOW = """
  import sys
  import tensorflow_datasets as tfds
  from dpo_jax.data import movie_reviews_tfds

  for split in ('train', 'test'):
    rows = tfds.data_source(
      'movie_reviews_vader', split=split, data_dir=sys.argv[1]
    )
    assert set(rows[0]) == {'id', 'rating', 'text'}
  assert 'tensorflow' not in sys.modules
"""


@pytest.mark.download
def test_movie_reviews(movie_file, tmp_path):
  script = textwrap.dedent(WITHOUT_TENSORFLOW)
  command = [sys.executable, '-c', script, str(tmp_path)]
  subprocess.run(command, check=True, capture_output=True)

  builder = tfds.builder_from_directory(
    str(tmp_path / 'movie_reviews_vader' / '1.0.0')
  )
  assert 'Hutto' in builder.info.citation
  assert builder.info.splits.total_num_examples == 10_605
  for split in movie_reviews.SPLITS:
    found = {}
    for row in builder.as_data_source(split):
      key = movie_reviews._words(row['text'].decode())
      found.setdefault(key, []).append(row['rating'])
    read = movie_reviews.read_split(movie_file, split, 0.1)
    assert len(found) == len(read)
    for sentence in read:
      ratings = found[movie_reviews._words(sentence.text)]
      mean = math.fsum(ratings) / len(ratings)
      assert mean == pytest.approx(sentence.rating, abs=1e-6)

  source = sources.SOURCES['tfds'](
    name='movie_reviews_vader',
    split='test',
    kind='sft',
    columns={'text': 'text'},
    data_dir=str(tmp_path),
  )
  items = list(source.rows(None))
  lines = movie_reviews.lines(movie_file, 'test', 0.1)
  assert sorted(i.completions[0] for i in items) == sorted(
    s.text for s in lines
  )
