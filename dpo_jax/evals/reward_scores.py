"""Rewards of completions by a reward model, and their normalisation.

A reward model leaves open what is added to all rewards. Its mean over samples
of a reference, which policies start from, is subtracted, so that 0 is what the
reference gets on average (section 3 of arXiv:2305.18290). The mean is stored
beside the weights, in reward.json: {"mean", "std", "samples", "reference",
"max_new_tokens"}.
"""

import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from dpo_jax import assets, registry, types
from dpo_jax.data import batches, row_sharding, store
from dpo_jax.data import records as records_lib
from dpo_jax.evals import samples
from dpo_jax.training import sharding

FILE = 'reward.json'


class Normalisation(NamedTuple):
  """Rewards of samples of a reference: mean and standard deviation.

  samples: how many. reference: the URI of the sampled model.
  """

  mean: float
  std: float
  samples: int
  reference: str
  max_new_tokens: int

  def to_json(self) -> str:
    """The text of reward.json."""
    return json.dumps(self._asdict(), indent=2) + '\n'


def read(folder: pathlib.Path) -> Normalisation | None:
  """What is stored beside the weights in `folder`; None if nothing is.

  ValueError for a file that is damaged.
  """
  path = folder / FILE
  if not path.is_file():
    return None
  values = assets.read_json(path)
  if not isinstance(values, dict) or set(values) != set(Normalisation._fields):
    raise ValueError(
      f'{str(path)!r} has {sorted(values)}; expected '
      f'{sorted(Normalisation._fields)}.'
    )
  return Normalisation(**values)


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


def sampler_of(section: Mapping[str, Any] | None) -> samples.Sampler | None:
  """`sampler` with the options of a config's section; None without one."""
  if section is None:
    return None
  return registry.bind(sampler, section, 'normalise')()


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
) -> Normalisation:
  """Of the rewards of samples; ValueError for one that is not finite."""
  values = np.asarray(values, np.float64)
  if not np.isfinite(values).all():
    raise ValueError(
      f'{(~np.isfinite(values)).sum()} of {len(values)} samples have rewards '
      'that are not finite.'
    )
  return Normalisation(
    float(values.mean()),
    float(values.std()),
    len(values),
    reference,
    max_new_tokens,
  )
