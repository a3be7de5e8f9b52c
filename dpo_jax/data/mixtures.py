"""Several data sets as one, each with its share of the examples.

Each part has epochs of its own: none of its records comes again before all
others of the part were seen. The parts are merged so that any run of examples
has the share of each part that the weights say, to within the examples of a
record or two: see order.py. A mixed epoch lasts until all records of all parts
were seen; parts of larger weight for their size are repeated within it.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

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


def part_sections(section: Mapping[str, Any]) -> list[dict[str, Any]]:
  """The parts of a mixture as sections, in the order of their names.

  A section without parts is the only one.
  """
  parts = section.get('parts')
  if not isinstance(parts, Mapping):
    return [dict(section)]
  shared = {n: v for n, v in section.items() if n not in ('source', 'parts')}
  return [
    {**shared, **part}
    for _, part in sorted(parts.items())
    if isinstance(part, Mapping)
  ]


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
    for what, value_of in (
      ('kind', lambda p: p.kind),
      ('arity', lambda p: p.arity),
      ('extras', lambda p: sorted(p.extras)),
    ):
      if value_of(part) != value_of(given[0]):
        raise ValueError(
          f'Parts of a mixture must be alike: {what} is {value_of(part)!r} for '
          f'{name!r} and {value_of(given[0])!r} for {first!r}.'
        )

  def joined(value_of):
    return np.concatenate([value_of(part) for part in given])

  def ends(name):
    """Running totals, each part's counted on from the last one's end."""
    steps = joined(lambda part: np.diff(getattr(part, name)))
    return np.concatenate([[0], np.cumsum(steps)])

  total = sum(weights.values())
  first_file = np.cumsum([0, *(len(part.files) for part in given[:-1])])
  all_scored = all(part.scored is None for part in given)
  mixed = MixedRecords(
    tokens=joined(lambda part: part.tokens),
    offsets=ends('offsets'),
    first_span=ends('first_span'),
    examples_ExK=joined(lambda part: part.examples_ExK),
    first_example=ends('first_example'),
    labels=joined(lambda part: part.labels),
    file_index=np.concatenate(
      [p.file_index + begin for p, begin in zip(given, first_file)]
    ).astype(np.int32),
    rows=joined(lambda part: part.rows),
    files=tuple(f for part in given for f in part.files),
    scored=None if all_scored else joined(_scored),
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


def _scored(part: store.TokenRecords) -> np.ndarray:
  """bool[tokens], those that are scored."""
  if part.scored is not None:
    return part.scored
  completion = np.ones(len(part.span_lengths), bool)
  completion[part.first_span[:-1]] = False
  return np.repeat(completion, part.span_lengths)
