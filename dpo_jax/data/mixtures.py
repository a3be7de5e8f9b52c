"""Several data sets as one, each with its share of the examples.

Each part has epochs of its own: none of its records comes again before all
others of the part were seen. The parts are merged so that any run of examples
has the share of each part that the weights say, to within the examples of a
record or two: see order.py. A mixed epoch lasts until all records of all parts
were seen; parts of larger weight for their size are repeated within it.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from dpo_jax.data import store


class Part(NamedTuple):
  """A run of records; `share` is that of the mixture's examples, in (0, 1]."""

  first: int
  records: int
  examples: int
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
  not have the same extras. weights: as `check_weights` wants them.
  """
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

  arrays = {
    name: [getattr(part, name) for part in given] for name in store.ARRAYS
  }
  # Running totals, each part's counted on from the last one's end.
  for name in ('offsets', 'first_span', 'first_example'):
    steps = [np.diff(totals) for totals in arrays[name]]
    arrays[name] = [[0], np.cumsum(np.concatenate(steps))]
  first_file = itertools.accumulate((len(p.files) for p in given), initial=0)
  arrays['file_index'] = [
    index + np.int32(first)
    for index, first in zip(arrays['file_index'], first_file)
  ]
  total, first, infos = sum(weights.values()), 0, []
  for name, part in parts.items():
    examples, share = int(part.example_counts.sum()), weights[name] / total
    infos.append(Part(first, len(part), examples, share))
    first += len(part)
    logging.info(
      'Part %r: %.1f %% of the examples; its %d are seen once in %d.',
      name,
      100 * share,
      examples,
      round(examples / share),
    )
  return MixedRecords(
    **{name: np.concatenate(values) for name, values in arrays.items()},
    files=tuple(f for part in given for f in part.files),
    extras={
      name: np.concatenate([part.extras[name] for part in given])
      for name in given[0].extras
    },
    kind=given[0].kind,
    plain=sum(part.plain for part in given),
    parts=tuple(infos),
  )
