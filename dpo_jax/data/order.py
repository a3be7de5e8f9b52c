"""Which examples make up step s: a pure function of the seed and s."""

import functools

import numpy as np

from dpo_jax.data import mixtures

# Examples of a mixture whose order is made at a time.
MAX_WINDOW = 1 << 20


def epoch_order(
  num_records: int, seed: int | None, epoch: int, part: int = 0
) -> np.ndarray:
  """i64[num_records]: the records of an epoch in the order they are visited.

  Sorts the raw output of a counter-based generator, which is the same in all
  versions of NumPy. Without a seed they keep their order. part: of a mixture;
  each has its own stream.
  """
  if seed is None:
    return np.arange(num_records)
  bits = stream(seed, epoch, part).random_raw(num_records)
  return np.argsort(bits, kind='stable')


def stream(seed: int, epoch: int, part: int) -> np.random.Philox:
  """Random bits; see `epoch_order`."""
  return np.random.Philox(
    key=np.array([seed, epoch], np.uint64),
    counter=np.array([0, 0, 0, part], np.uint64),
  )


def evenly(classes: np.ndarray) -> np.ndarray:
  """i64: a permutation that keeps each class in order, evenly spread.

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


def unshuffled(records) -> np.ndarray:
  """i64[n]: records in their own order, the parts of a mixture evenly merged.

  So the first of them are of all parts, in proportion to their sizes.
  """
  if not isinstance(records, mixtures.MixedRecords):
    return np.arange(len(records))
  sizes = [part.records for part in records.parts]
  return evenly(np.repeat(np.arange(len(sizes)), sizes))


class ExampleStream:
  """The endless sequence of examples: shuffled records, each one's together.

  A record's examples (all pairs of one prompt) stay together, so that they can
  share its tree. Epochs follow each other without a gap; a batch may span two.
  Where completions are labelled, records with desirable ones, with undesirable
  ones and with both are shuffled separately and merged evenly, so that every
  batch has the classes in the data's proportions.

  Parts of a mixture are shuffled separately, epoch after epoch, and merged: the
  record in whose middle a part has given x examples comes at time x / share.
  Without a seed all records are visited once, whatever the shares: see
  `unshuffled`.

  per_epoch: examples until every record was seen.
  """

  def __init__(self, records, *, seed: int | None):
    self.records, self.seed = records, seed
    self.counts = records.example_counts
    self.classes = _classes(records)
    total = int(self.counts.sum())
    self._parts = (mixtures.Part(0, len(records), total, 1.0),)
    if seed is not None and isinstance(records, mixtures.MixedRecords):
      self._parts = records.parts
    epoch = max(part.examples / part.share for part in self._parts)
    # Of a window, in time. With one part, windows are epochs; epochs of a
    # mixture whose large part has a small share would not fit into memory.
    self._length = epoch if len(self._parts) == 1 else min(epoch, MAX_WINDOW)
    self._window = functools.lru_cache(maxsize=2)(self._window_uncached)
    self._epoch = functools.lru_cache(maxsize=3 * len(self._parts))(
      self._epoch_uncached
    )
    self._begin = functools.lru_cache(maxsize=4)(
      lambda window: self._before(window * self._length)
    )
    self.per_epoch = self._before(epoch)

  def slice(self, begin: int, end: int) -> list[tuple[int, list[tuple]]]:
    """[(record, its examples)] for the examples begin <= i < end.

    A record that comes again within them, in its next epoch, is listed again.
    """
    out = []
    window = int(begin / self._length)
    while begin < end:
      while begin < self._begin(window):
        window -= 1
      while begin >= self._begin(window + 1):
        window += 1
      order, ends = self._window(window)
      offset = begin - self._begin(window)
      place = int(np.searchsorted(ends, offset, side='right')) - 1
      take = min(int(ends[place + 1]) - offset, end - begin)
      first = offset - int(ends[place])
      record = int(order[place])
      examples = self.records.examples(record)[first : first + take]
      out.append((record, [tuple(int(c) for c in e) for e in examples]))
      begin += take
    return out

  def _epoch_uncached(self, p: int, epoch: int):
    """Records of an epoch of part p in their order, and the time of each."""
    part = self._parts[p]
    if self.seed is None:
      order = unshuffled(self.records)
    else:
      order = part.first + epoch_order(part.records, self.seed, epoch, p)
      order = order[evenly(self.classes[order])]
    counts = self.counts[order]
    middle = np.cumsum(counts) - counts / 2
    return order, (epoch * part.examples + middle) / part.share

  def _epochs(self, p: int, begin: float, end: float) -> range:
    """Epochs of part p between two times, one more for rounding errors."""
    per_time = self._parts[p].share / self._parts[p].examples
    first, last = int(begin * per_time), int(end * per_time)
    return range(max(first - 1, 0), last + 2)

  def _before(self, time: float) -> int:
    """Examples before a time."""
    before = 0
    for p, part in enumerate(self._parts):
      epochs = self._epochs(p, time, time)
      before += epochs.start * part.examples
      for epoch in epochs:
        order, times = self._epoch(p, epoch)
        before += int(self.counts[order[times < time]].sum())
    return before

  def _window_uncached(self, window: int):
    """Records of a window in their order, and where their examples end."""
    orders, times = [], []
    begin, end = window * self._length, (window + 1) * self._length
    for p in range(len(self._parts)):
      for epoch in self._epochs(p, begin, end):
        order, time = self._epoch(p, epoch)
        inside = (time >= begin) & (time < end)
        orders.append(order[inside])
        times.append(time[inside])
    # Stable: at the same time the first part comes first.
    places = np.argsort(np.concatenate(times), kind='stable')
    order = np.concatenate(orders)[places]
    return order, np.concatenate([[0], np.cumsum(self.counts[order])])


def _classes(records) -> np.ndarray:
  """i64[n]: 1 with desirable completions, plus 2 with undesirable ones."""
  if records.kind == 'rated':
    return np.zeros(len(records), np.int64)
  owner = np.repeat(np.arange(len(records)), records.completion_counts)
  desirable, undesirable = (
    np.bincount(owner, records.labels == label, len(records)) > 0
    for label in (1, 0)
  )
  return desirable + 2 * undesirable
