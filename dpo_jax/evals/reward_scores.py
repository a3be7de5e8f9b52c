"""Rewards of a reference's samples, over which a reward model is normalised.

A reward model leaves open what is added to all rewards: what is stored beside
its weights says what policies start from.
"""

from collections.abc import Callable, Sequence

import jax
import numpy as np

from dpo_jax import registry, types
from dpo_jax.data import batches, row_sharding, store
from dpo_jax.data import records as records_lib
from dpo_jax.evals import samples
from dpo_jax.rewards import reward_model
from dpo_jax.training import sharding


def sampler(
  *, num_prompts: int, num_samples: int, max_new_tokens: int
) -> samples.Sampler:
  """What draws the samples over which rewards are normalised, unfiltered.

  num_samples: of each prompt.
  """
  for name, value in (
    ('num_prompts', num_prompts),
    ('num_samples', num_samples),
    ('max_new_tokens', max_new_tokens),
  ):
    registry.check_integer(f'normalise.{name}', value, 1)
  return samples.build(
    num_prompts=num_prompts,
    num_samples=num_samples,
    max_new_tokens=max_new_tokens,
  )


def token_records(
  texts: Sequence[tuple[Sequence[int], Sequence[int]]],
) -> store.TokenRecords:
  """A record of each (prompt, completion), token ids."""
  builder = store.Builder()
  for i, (prompt, completion) in enumerate(texts):
    record = records_lib.Record(
      prompt='',
      completions=('',),
      examples=((0,),),
      file='completions',
      row=i + 1,
    )
    builder.add(record, prompt, [completion])
  return builder.finish()


def rewards(
  score: Callable[..., types.Scores],
  params: types.Params,
  records: store.TokenRecords,
  mesh: jax.sharding.Mesh,
  *,
  batch_size: int,
) -> np.ndarray:
  """f32[N]: the rewards of records with one completion each; collective.

  score: of `step.make_score` for a reward model.
  """
  rows = sharding.rows_per_batch(mesh, batch_size)
  (packed,) = batches.eval_batches(records, rows, batch_size=batch_size)
  out = np.full(len(records), np.nan, np.float32)
  for batch in batches.iterate(packed, mesh):
    scores = score(params, types.Frozen(), batch, jax.random.key(0))
    found = row_sharding.to_host(scores['rewards'])
    record = row_sharding.to_host(batch.slot_record_RxS)
    out[record[record >= 0]] = found[record >= 0]
  return out


def normalisation(
  values: np.ndarray, *, reference: str, max_new_tokens: int
) -> reward_model.Normalisation:
  """Of the rewards of samples; ValueError for one that is not finite."""
  values = np.asarray(values, np.float64)
  if not np.isfinite(values).all():
    raise ValueError(
      f'{(~np.isfinite(values)).sum()} of {len(values)} samples have rewards '
      'that are not finite.'
    )
  return reward_model.Normalisation(
    float(values.mean()),
    float(values.std()),
    len(values),
    reference,
    max_new_tokens,
  )
