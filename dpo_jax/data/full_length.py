"""Records of examples of full length, for plans of memory and time."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from dpo_jax.data import records as records_lib
from dpo_jax.data import store


def records(
  count: int,
  *,
  arity: int,
  prompt_length: int,
  length: int,
  extras: Sequence[str] = (),
) -> store.TokenRecords:
  """`count` records of one example of `arity` completions, all of token 0.

  A prompt and each of its completions are `length` tokens together. Labels
  alternate; `extras` are zeros.
  """
  builder = store.Builder()
  for i in range(count):
    record = records_lib.Record(
      prompt='',
      completions=('',) * arity,
      examples=(tuple(range(arity)),),
      file='examples of full length',
      row=i + 1,
      labels=(i % 2 == 0,) * arity,
    )
    completion = [0] * (length - prompt_length)
    builder.add(record, [0] * prompt_length, [completion] * arity)
  found = builder.finish()
  values = np.zeros(len(found.tokens), np.float32)
  return dataclasses.replace(found, extras=dict.fromkeys(extras, values))
