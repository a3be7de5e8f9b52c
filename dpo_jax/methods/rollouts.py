"""Rollouts: samples of the present policy, and numbers of their tokens."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from dpo_jax import models, sampling, tokenizers, types
from dpo_jax.data import records as records_lib
from dpo_jax.data import row_sharding, store
from dpo_jax.evals import samples

Ids = list[int]
# Completions of a prompt that are compared, the best first.
Examples = Sequence[tuple[int, ...]]


class Rollouts(NamedTuple):
  """K samples of each of B prompts, N = B * K in all, at most T tokens long.

  Sample k of prompt b is sample b * K + k.

  prompts: ids, with their root. where: 'file:row' of each.
  prompt_texts, texts: of each sample, without the token that ends it.
  tokens_NxT: i32. length_N: i64, the token that ends a sample included.
  logps_NxT: f32 in nats, under the policy at temperature 1; 0 from the end on.
  ended_N: bool, whether EOS or the end of a turn was sampled.
  """

  prompts: Sequence[Ids]
  where: Sequence[str]
  prompt_texts: list[str]
  texts: list[str]
  tokens_NxT: np.ndarray
  length_N: np.ndarray
  logps_NxT: np.ndarray
  ended_N: np.ndarray

  @property
  def num_samples(self) -> int:
    """Samples of each prompt."""
    return len(self.texts) // len(self.prompts)

  @property
  def mask_NxT(self) -> np.ndarray:
    """bool: the tokens of the samples."""
    return np.arange(self.tokens_NxT.shape[1])[None] < self.length_N[:, None]


def draw(
  params: types.Params,
  config: models.ModelConfig,
  prompts: Sequence[Ids],
  where: Sequence[str],
  tokenizer: tokenizers.Tokenizer,
  *,
  key: types.Array,
  num_samples: int,
  max_new_tokens: int,
  temperature: float,
  batch_size: int | None,
  compute: models.Compute,
) -> Rollouts:
  """`num_samples` samples of each prompt. Collective, as `sampling.sample`."""
  drawn = sampling.sample(
    params,
    config,
    prompts,
    key=key,
    max_new_tokens=max_new_tokens,
    num_samples=num_samples,
    temperature=temperature,
    batch_size=batch_size,
    eos_id=tokenizer.stop_ids,
    compute=compute,
  )
  tokens_NxT = drawn.tokens_BxSxT.reshape(-1, max_new_tokens)
  length_N = drawn.lengths_BxS.reshape(-1).astype(np.int64)
  texts, ended = zip(
    *(
      samples.text_of_sample(ids[:n].tolist(), tokenizer)
      for ids, n in zip(tokens_NxT, length_N)
    )
  )
  prompt_texts = [samples.text_of_prompt(ids, tokenizer) for ids in prompts]
  return Rollouts(
    prompts=prompts,
    where=where,
    prompt_texts=[text for text in prompt_texts for _ in range(num_samples)],
    texts=list(texts),
    tokens_NxT=tokens_NxT,
    length_N=length_N,
    logps_NxT=drawn.logps_BxSxT.reshape(-1, max_new_tokens),
    ended_N=np.array(ended),
  )


def to_records(
  rollouts: Rollouts,
  examples: Sequence[Examples],
  extras_NxT: Mapping[str, np.ndarray],
) -> store.TokenRecords:
  """A record for each prompt, with all of its samples as completions.

  examples: those of each prompt; a prompt without any has no record.
  extras_NxT: numbers of the samples' tokens; they become the extras of the
  records.
  """
  count, tokens = rollouts.num_samples, rollouts.tokens_NxT
  builder = store.Builder()
  extras = {name: [] for name in extras_NxT}
  for b, (prompt, of_prompt) in enumerate(zip(rollouts.prompts, examples)):
    if not of_prompt:
      continue
    spans = [
      (n, rollouts.length_N[n]) for n in range(b * count, (b + 1) * count)
    ]
    file, _, row = rollouts.where[b].rpartition(':')
    record = records_lib.Record(
      prompt='',
      completions=('',) * count,
      examples=tuple(map(tuple, of_prompt)),
      file=f'samples of {file}',
      row=int(row),
    )
    builder.add(
      record, list(prompt), [tokens[n, :end].tolist() for n, end in spans]
    )
    for name, values in extras_NxT.items():
      extras[name] += [
        np.zeros(len(prompt), values.dtype),
        *(values[n, :end] for n, end in spans),
      ]
  found = {name: np.concatenate(x) for name, x in extras.items() if x}
  return dataclasses.replace(builder.finish(), extras=found)


def places(rollouts: Rollouts) -> np.ndarray:
  """i32[N, T]: n * T + t, which tells `scatter` where a token belongs."""
  shape = rollouts.tokens_NxT.shape
  return np.arange(np.prod(shape), dtype=np.int32).reshape(shape)


def scatter(values_RxN: Any, batch: types.Batch, into_NxT: np.ndarray) -> None:
  """Writes numbers of a batch's scored tokens to their places, in place.

  Collective. batch: on the devices, with the extra 'place', which is `places`.
  """
  values, place, weight = map(
    row_sharding.to_host,
    (values_RxN, batch.extras_RxN['place'], batch.score_weight_RxN),
  )
  real = weight > 0
  into_NxT.reshape(-1)[place[real]] = values[real]


def on_mesh(mesh: jax.sharding.Mesh, batch: types.Batch) -> types.Batch:
  """A batch that every process has as device arrays, rows split over `mesh`."""
  rows = row_sharding.local_rows(mesh, batch.tokens_RxL.shape[0])
  mine = jax.tree.map(lambda x: x[np.asarray(rows)], batch)
  return row_sharding.to_devices(mesh, mine)
