"""Several data sets as one, each with its share of the examples.

Every part is visited in epochs of its own: none of its records comes again
before all others of the part were seen. The parts are merged so that any run of
examples has the share of each part that the weights say, to within the examples
of a record or two: see order.py. A mixed epoch is as long as it takes until all
records of all parts were seen, and the parts of larger weight for their size
are repeated within it.
"""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
from absl import logging

from dpo_jax.data import store


@dataclasses.dataclass(frozen=True)
class Part:
  """How many records it has, and its share of the examples, in (0, 1]."""

  records: int
  share: float


@dataclasses.dataclass(frozen=True, eq=False)
class MixedRecords(store.TokenRecords):
  """Records of several parts, one part after the other."""

  parts: tuple[Part, ...] = ()


def check_weights(weights: Mapping[str, object]) -> None:
  """ValueError unless each is a positive number."""
  for name, weight in weights.items():
    number = isinstance(weight, int | float) and not isinstance(weight, bool)
    if not number or not 0 < weight < math.inf:
      raise ValueError(
        f'weight={weight!r} of part {name!r}: expected a positive number, its '
        'share of the examples before all are scaled to sum to 1.'
      )


def concatenate(
  parts: Mapping[str, store.TokenRecords], weights: Mapping[str, float]
) -> MixedRecords:
  """The records of all parts, with the share of each.

  ValueError for parts whose examples are not of one kind and arity, or that do
  not have the same extras.
  """
  check_weights(weights)
  first, given = next(iter(parts)), list(parts.values())
  for name, part in parts.items():
    for what in ('kind', 'arity', 'extras'):
      mine, its = (_trait(x, what) for x in (part, given[0]))
      if mine != its:
        raise ValueError(
          f'Parts of a mixture must be alike: {what} is {mine!r} for {name!r} '
          f'and {its!r} for {first!r}.'
        )
  total = sum(weights.values())
  mixed = MixedRecords(
    tokens=_joined(given, 'tokens'),
    offsets=_ends(given, 'offsets'),
    first_span=_ends(given, 'first_span'),
    examples_ExK=_joined(given, 'examples_ExK'),
    first_example=_ends(given, 'first_example'),
    labels=_joined(given, 'labels'),
    file_index=np.concatenate(
      [p.file_index + begin for p, begin in zip(given, _file_begins(given))]
    ),
    rows=_joined(given, 'rows'),
    files=tuple(f for part in given for f in part.files),
    scored=_scored(given),
    extras={
      name: np.concatenate([part.extras[name] for part in given])
      for name in given[0].extras
    },
    kind=given[0].kind,
    plain=sum(part.plain for part in given),
    parts=tuple(
      Part(len(part), weights[name] / total) for name, part in parts.items()
    ),
  )
  for (name, part), share in zip(parts.items(), mixed.parts):
    examples = int(part.example_counts.sum())
    logging.info(
      'Part %r: %.1f %% of the examples; its %d are seen once in %d.',
      name,
      100 * share.share,
      examples,
      round(examples / share.share),
    )
  return mixed


def _trait(part: store.TokenRecords, what: str):
  value = getattr(part, what)
  return sorted(value) if what == 'extras' else value


def _joined(parts: list[store.TokenRecords], name: str) -> np.ndarray:
  return np.concatenate([getattr(part, name) for part in parts])


def _ends(parts: list[store.TokenRecords], name: str) -> np.ndarray:
  """Running totals, each part's counted on from the last one's end."""
  steps = [np.diff(getattr(part, name)) for part in parts]
  return np.concatenate([[0], np.cumsum(np.concatenate(steps))])


def _scored(parts: list[store.TokenRecords]) -> np.ndarray | None:
  """bool[tokens]; a part without it scores all of its completions."""
  if all(part.scored is None for part in parts):
    return None
  found = []
  for part in parts:
    prompt = np.zeros(len(part.span_lengths), bool)
    prompt[part.first_span[:-1]] = True
    completions = ~np.repeat(prompt, part.span_lengths)
    found.append(completions if part.scored is None else part.scored)
  return np.concatenate(found)


def _file_begins(parts: list[store.TokenRecords]) -> np.ndarray:
  counts = [len(part.files) for part in parts]
  return np.cumsum([0, *counts[:-1]]).astype(np.int32)
