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


class ExampleStream:
  """The endless sequence of examples: records shuffled, each one's in a row.

  A record's examples (all pairs of one prompt) stay together, so that they can
  share its tree. Epochs follow each other without a gap; a batch may span two.
  """

  def __init__(self, records, *, seed: int | None):
    self.records, self.seed = records, seed
    self.counts = records.example_counts
    self.per_epoch = int(self.counts.sum())
    self._epoch = functools.lru_cache(maxsize=2)(self._epoch_uncached)

  def _epoch_uncached(self, epoch: int):
    order = epoch_order(len(self.records), self.seed, epoch)
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
