"""Which examples make up step s: a pure function of the seed and s."""

import functools

import numpy as np


def epoch_order(num_records: int, seed: int | None, epoch: int) -> np.ndarray:
  """i64[num_records]: the records of an epoch in the order they are visited.

  Sorts the raw output of a counter-based generator, a stream that NumPy keeps
  stable over versions. `seed` None visits them in their own order.
  """
  if seed is None:
    return np.arange(num_records)
  bits = np.random.Philox(key=np.array([seed, epoch], np.uint64))
  return np.argsort(bits.random_raw(num_records), kind='stable')


def evenly(classes: np.ndarray) -> np.ndarray:
  """i64: the elements' places, each class kept in order and evenly spread.

  The j-th of the m elements of a class stands at (j + 1/2) / m of the whole, so
  that of two classes any run of elements has its share to within one of each.
  classes: int[n], from 0.
  """
  counts = np.bincount(classes)
  by_class = np.argsort(classes, kind='stable')
  rank = np.empty(len(classes), np.int64)
  rank[by_class] = np.arange(len(classes)) - np.repeat(
    np.cumsum(counts) - counts, counts
  )
  return np.lexsort((classes, (2 * rank + 1) / (2 * counts[classes])))


class ExampleStream:
  """The endless sequence of examples: records shuffled, each one's in a row.

  A record's examples (all pairs of one prompt) stay together, so that they can
  share its tree. Epochs follow each other without a gap; a batch may span two.
  Where completions are labelled, those records with desirable ones, with
  undesirable ones and with both are shuffled apart and merged evenly, so that
  a batch has the classes in the shares that the data has them in.
  """

  def __init__(self, records, *, seed: int | None):
    self.records, self.seed = records, seed
    self.counts = records.example_counts
    self.classes = _classes(records)
    self.per_epoch = int(self.counts.sum())
    self._epoch = functools.lru_cache(maxsize=2)(self._epoch_uncached)

  def _epoch_uncached(self, epoch: int):
    order = epoch_order(len(self.records), self.seed, epoch)
    if self.seed is not None:
      order = order[evenly(self.classes[order])]
    return order, np.concatenate([[0], np.cumsum(self.counts[order])])

  def slice(self, begin: int, end: int) -> list[tuple[int, list[tuple]]]:
    """[(record, its examples)] for the examples begin <= i < end."""
    out = []
    while begin < end:
      epoch, offset = divmod(begin, self.per_epoch)
      order, ends = self._epoch(epoch)
      place = int(np.searchsorted(ends, offset, side='right')) - 1
      take = min(int(ends[place + 1]) - offset, end - begin)
      first = offset - int(ends[place])
      record = int(order[place])
      examples = self.records.examples(record)[first : first + take]
      out.append((record, [tuple(int(c) for c in e) for e in examples]))
      begin += take
    return out


def _classes(records) -> np.ndarray:
  """i64[n]: 1 with desirable completions, plus 2 with undesirable ones."""
  owner = np.repeat(np.arange(len(records)), records.completion_counts)
  desirable, undesirable = (
    np.bincount(owner, records.labels == label, len(records)) > 0
    for label in (1, 0)
  )
  return desirable + 2 * undesirable
