"""TFDS data set `movie_reviews_vader`: rated sentences of film reviews.

  import tensorflow_datasets as tfds
  from dpo_jax.data import movie_reviews_tfds

  tfds.data_source('movie_reviews_vader', split='train')

Written and read as array_record files, without TensorFlow. Splits are those of
sources/movie_reviews.py; equal sentences are all kept, each with its own
rating.
"""

from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

from dpo_jax import assets
from dpo_jax.data.sources import movie_reviews

HELD_OUT_FRACTION = 0.1

_DESCRIPTION = """
Sentences of film reviews (B. Pang and L. Lee, A Sentimental Education, ACL
2004), each with the mean of some 20 human ratings of its sentiment, from -4,
extremely negative, to 4, extremely positive. A tenth of the sentences, chosen
by their words, is the test split.
"""

_CITATION = (
  'C.J. Hutto and E. Gilbert. VADER: A Parsimonious Rule-based Model for '
  'Sentiment Analysis of Social Media Text. ICWSM 2014.'
)


class MovieReviewsVader(tfds.core.GeneratorBasedBuilder):
  """10,605 sentences: `id`, `rating` in [-4, 4] and `text`."""

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES: ClassVar = {
    '1.0.0': 'The ratings that vaderSentiment 2.5 ships.'
  }

  def __init__(self, *, file_format='array_record', **options):
    super().__init__(file_format=file_format, **options)

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description=_DESCRIPTION,
      features=tfds.features.FeaturesDict(
        {
          'id': tfds.features.Text(),
          'rating': np.float32,
          'text': tfds.features.Text(),
        }
      ),
      homepage='https://github.com/cjhutto/vaderSentiment',
      citation=_CITATION,
      license='MIT',
    )

  def _split_generators(self, dl_manager):
    del dl_manager  # The asset has a cache and a checksum of its own.
    path = assets.resolve(assets.MOVIE_REVIEWS)
    return {
      split: self._generate_examples(path, split)
      for split in movie_reviews.SPLITS
    }

  def _generate_examples(self, path, split):
    for sentence in movie_reviews.lines(path, split, HELD_OUT_FRACTION):
      yield (
        sentence.line,
        {'id': sentence.id, 'rating': sentence.rating, 'text': sentence.text},
      )
