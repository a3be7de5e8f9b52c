"""Mismatched completions, of other records, that KTO estimates its KL from.

K. Ethayarajh et al., KTO: Model Alignment as Prospect Theoretic Optimization,
arXiv:2402.01306, pairs each prompt of a micro-batch with the micro-batch's next
completion. Here a seeded derangement of all examples fixes the partners once:

  - Examples are put in a random order that keeps those of a record together,
    and the records of a prompt. The partner is half of all examples further on,
    cyclically. So it has another prompt if no prompt has more than half of the
    examples; else as many partners as possible have one, the others are of
    other records, and a warning says so.
  - Where the partner is of the same record (one with more than half of the
    examples), or has the same tokens, another is drawn for which neither holds,
    with another prompt if possible. So a few completions serve twice. Where all
    others have the same tokens, a warning says so.

A partner is truncated to what the prompt leaves of `max_length`, and then has
no EOS; the prompt is the same as before the example's own completion. That
holds for truncation='drop' too.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from absl import logging

from dpo_jax import types
from dpo_jax.data import order, store


class _Examples(NamedTuple):
  """The completions of E examples, each with its record and its prompt.

  begin, length: where its tokens lie; room: tokens that its prompt leaves.
  prompt, answer: equal where the tokens are.
  """

  tokens: np.ndarray
  record: np.ndarray
  begin: np.ndarray
  length: np.ndarray
  room: np.ndarray
  prompt: np.ndarray
  answer: np.ndarray

  def same(self, e: int, other: int) -> bool:
    """Whether the completion of `other`, truncated, equals that of `e`."""
    mine, its = (
      self.tokens[self.begin[i] : self.begin[i] + self.length[i]]
      for i in (e, other)
    )
    return np.array_equal(mine, its[: self.room[e]])


def attach(
  records: store.TokenRecords, *, seed: int, max_length: int
) -> store.TokenRecords:
  """Records whose examples are (own, mismatched), from those of (own,).

  The mismatched completions follow the record's own, without labels. Extras are
  left out. ValueError if there is only one record.
  """
  if len(records) < 2:
    raise ValueError(
      f'{records.where(0)} is the only record: there is no other completion '
      'to mismatch its prompt with.'
    )
  examples = _examples(records, max_length)
  partner = _partners(examples, seed)
  _report(examples, partner)
  return _append(records, examples, partner)


def _examples(records: store.TokenRecords, max_length: int) -> _Examples:
  record = np.repeat(np.arange(len(records)), records.example_counts)
  span = records.first_span[record] + 1 + records.examples_ExK[:, 0]
  prompts = records.first_span[:-1]
  # A plain array: slices of one that is mapped from a file are slow.
  tokens = np.array(records.tokens)
  return _Examples(
    tokens=tokens,
    record=record,
    begin=records.offsets[span],
    length=records.span_lengths[span],
    room=max_length - records.prompt_lengths[record],
    prompt=_identities(tokens, records.offsets, prompts)[record],
    answer=_identities(tokens, records.offsets, span),
  )


def _identities(tokens, offsets, spans) -> np.ndarray:
  """i64: for each span a number that it shares with those equal to it."""
  known: dict[bytes, int] = {}
  pairs = zip(offsets[spans].tolist(), offsets[spans + 1].tolist())
  return np.array(
    [
      known.setdefault(tokens[begin:end].tobytes(), len(known))
      for begin, end in pairs
    ]
  )


def _partners(x: _Examples, seed: int) -> np.ndarray:
  """i64[E]: the example whose completion each is mismatched with."""
  n = len(x.record)
  rank = [
    order.epoch_order(int(ids.max()) + 1, seed, i)[ids]
    for i, ids in enumerate((np.arange(n), x.record, x.prompt))
  ]
  places = np.lexsort(rank)
  partner = np.empty(n, np.int64)
  partner[places] = np.roll(places, -(n // 2))
  wrong = (x.record[partner] == x.record) | (x.answer[partner] == x.answer)
  # Only one that is truncated to the same length can become equal.
  (cut,) = np.nonzero((x.length == x.room) & (x.length[partner] > x.room))
  wrong[[e for e in cut if x.same(e, partner[e])]] = True
  if wrong.any():
    _replace(x, places, partner, np.flatnonzero(wrong), seed)
  return partner


def _replace(x: _Examples, places, partner, wrong, seed: int) -> None:
  """Other partners for the `wrong` examples, in place."""
  draws = order.epoch_order(len(places), seed, 3)
  blocks = [_blocks(ids[places]) for ids in (x.prompt, x.record)]
  wrong = wrong[np.argsort(x.answer[wrong], kind='stable')]
  for answer, same in itertools.groupby(wrong, x.answer.__getitem__):
    allowed = np.flatnonzero(x.answer[places] != answer)
    for e in same:
      own = [blocks[0][x.prompt[e]], blocks[1][x.record[e]]]
      choices = itertools.chain(
        *(_outside(places, allowed, block, draws[e]) for block in own)
      )
      # Any other record, should all answers be the same.
      last = _outside(places, np.arange(len(places)), own[1], draws[e])
      found = (other for other in choices if not x.same(e, other))
      partner[e] = next(itertools.chain(found, last))


def _blocks(ids: np.ndarray) -> np.ndarray:
  """i64[ids, 2]: where the run of each id begins and ends."""
  begin = np.full(ids.max() + 1, len(ids))
  np.minimum.at(begin, ids, np.arange(len(ids)))
  return np.stack([begin, begin + np.bincount(ids)], axis=1)


def _outside(places, allowed, block, draw) -> Iterator[int]:
  """The examples at the `allowed` places outside a block, from some one on."""
  begin, end = np.searchsorted(allowed, block)
  free = len(allowed) - (end - begin)
  for i in range(free):
    at = (draw + i) % free
    yield int(places[allowed[at if at < begin else at + end - begin]])


def _report(x: _Examples, partner: np.ndarray) -> None:
  for ids, what in (
    (
      x.prompt,
      'are of other records with the same prompt: one prompt has more than '
      'half of the examples',
    ),
    (
      x.answer,
      'are the same as their own: all other records have only that answer',
    ),
  ):
    if same := int((ids[partner] == ids).sum()):
      message = 'KTO: %d of %d mismatched completions %s.'
      logging.warning(message, same, len(partner), what)


def _append(
  records: store.TokenRecords, x: _Examples, partner: np.ndarray
) -> store.TokenRecords:
  """Each record with the partners of its examples as further completions."""
  added = records.example_counts
  first_span = records.first_span + records.first_example
  own = np.ones(first_span[-1], bool)
  # A record's partners are its last spans.
  later = np.arange(len(partner)) + records.first_span[x.record + 1]
  own[later] = False
  begin, length = (np.empty(len(own), np.int64) for _ in range(2))
  begin[own], length[own] = records.offsets[:-1], records.span_lengths
  begin[later] = x.begin[partner]
  length[later] = np.minimum(x.length[partner], x.room)
  offsets = np.concatenate([[0], np.cumsum(length)])
  index = np.arange(offsets[-1]) + np.repeat(begin - offsets[:-1], length)
  labels = np.full(len(own), types.NO_LABEL, np.float32)
  is_prompt = np.zeros(len(own), bool)
  is_prompt[first_span[:-1]] = True
  labels[own & ~is_prompt] = records.labels
  scored = ~np.repeat(is_prompt, length)
  rootless = np.repeat(records.prompt_lengths == 0, np.diff(first_span))
  scored[offsets[:-1][rootless & (length > 0)]] = False
  local = np.arange(len(partner)) - np.repeat(records.first_example[:-1], added)
  mismatched = records.completion_counts[x.record] + local
  return dataclasses.replace(
    records,
    tokens=x.tokens[index],
    offsets=offsets,
    first_span=first_span,
    examples_ExK=np.stack(
      [records.examples_ExK[:, 0], mismatched], axis=1
    ).astype(np.int32),
    labels=labels[~is_prompt],
    scored=scored,
    extras={},
  )
