"""KL(policy || reference) of whole answers, from samples of the policy."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax import types
from dpo_jax.data import batches, row_sharding, store
from dpo_jax.data import records as records_lib
from dpo_jax.losses import logprobs
from dpo_jax.models import parallel

Rows = list[dict[str, Any]]


def make_sequence_kl(
  policy: types.Policy,
  mesh: jax.sharding.Mesh,
  *,
  max_new_tokens: int,
  logprob_chunk: int = 256,
  batch_size: int = 64,
  max_tree_tokens: int = 512,
) -> Callable[..., Rows]:
  """Compiles sequence_kl(params, reference_params, prompts, rows) -> rows.

  prompts: ids; rows: samples of `samples.generate`, equally many for each
  prompt, in the order of the prompts. The rows come back with two more numbers,
  in nats:

    kl         the KL over the vocabulary at each token, summed over tokens
    log_ratio  log policy(sample) - log reference(sample)

  Over samples of the policy itself (temperature 1, no filter) both have the
  mean KL(policy || reference), `kl` with less variance; over others neither
  has. EOS counts; what was cut at max_new_tokens counts as it is. Samples are
  padded to `max_new_tokens`, so that samples of the same prompts have one shape
  whatever they say. Every process gets all rows.
  """

  @jax.jit
  @policy.over_rows
  def score(batch, params, reference_params):
    # What fills a sample up to max_new_tokens does not count.
    real_RxN = batch.extras_RxN['sample'] >= 0
    batch = batch.replace(
      score_weight_RxN=jnp.where(real_RxN, batch.score_weight_RxN, 0.0)
    )
    parts = []
    for tree in (params, reference_params):
      hidden = policy.hidden(tree, batch.tokens_RxL, batch.layout)
      parts.append((policy.head(tree), hidden))
    own, other = (
      logprobs.token_logps(*part, batch, chunk_size=logprob_chunk)
      for part in parts
    )
    kls = logprobs.token_kls(
      *parts[0], *parts[1], batch, chunk_size=logprob_chunk
    )
    return kls, own - other

  def sequence_kl(params, reference_params, prompts, rows: Rows) -> Rows:
    records = _records(prompts, rows, max_new_tokens)
    (packed,) = batches.eval_batches(
      records,
      parallel.row_groups(mesh),
      batch_size=batch_size,
      max_tree_tokens=max_tree_tokens,
    )
    totals = np.zeros((2, len(rows)))
    for batch in batches.iterate(packed, mesh):
      found = score(batch, params, reference_params)
      sample, weight, *found = map(
        row_sharding.to_host,
        (batch.extras_RxN['sample'], batch.score_weight_RxN, *found),
      )
      real_RxN = (weight > 0) & (sample >= 0)
      for total, values_RxN in zip(totals, found):
        np.add.at(total, sample[real_RxN].astype(int), values_RxN[real_RxN])
    return [
      {**row, 'kl': float(kl), 'log_ratio': float(ratio)}
      for row, kl, ratio in zip(rows, *totals)
    ]

  return sequence_kl


def _records(
  prompts: Sequence[Sequence[int]], rows: Rows, max_new_tokens: int
) -> store.TokenRecords:
  """A record a prompt; extras['sample'] is a token's row, -1 for none."""
  per_prompt, rest = divmod(len(rows), len(prompts))
  if rest or not per_prompt:
    raise ValueError(
      f'{len(rows)} samples of {len(prompts)} prompts: expected equally many '
      'for each prompt.'
    )
  builder, sample = store.Builder(), []
  for i, prompt in enumerate(prompts):
    sample += [-1] * len(prompt)
    completions = []
    for r in range(i * per_prompt, (i + 1) * per_prompt):
      ids = rows[r]['ids']
      missing = max_new_tokens - len(ids)
      if missing < 0:
        raise ValueError(
          f'Sample {r} is {len(ids)} tokens long; max_new_tokens is '
          f'{max_new_tokens}.'
        )
      completions.append([*ids, *[0] * missing])
      sample += [r] * len(ids) + [-1] * missing
    record = records_lib.Record(
      prompt='',
      completions=('',) * per_prompt,
      examples=tuple((c,) for c in range(per_prompt)),
    )
    builder.add(record, list(prompt), completions)
  extras = {'sample': np.array(sample, np.float32)}
  return dataclasses.replace(builder.finish(), extras=extras)
