"""Samples of a block's runs, and what judges them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from dpo_jax import (
  data,
  data_sections,
  models,
  rewards,
  tokenizers,
  types,
  weights,
)
from dpo_jax.evals import samples
from experiments.imdb import pages, places

# Of scores that are kept.
DIGITS = 4


class Policy(NamedTuple):
  """A finished run's model."""

  tokenizer: tokenizers.Tokenizer
  config: models.ModelConfig
  params: types.Params


def load(place: places.Place, run: str) -> Policy:
  """The policy of a run of a block; 'sft' is the reference."""
  uri = place.folder(f'{run}/params')
  return Policy(tokenizers.load(uri), *weights.load(uri))


def prompts(
  place: places.Place, tokenizer: tokenizers.Tokenizer, count: int
) -> list[list[int]]:
  """The first prompts that the evaluations of the block's runs sample."""
  page = pages.get_config(f'{place.scale}/{place.block}/dpo').to_dict()
  sections = (page[x] for x in ('data', 'train_data', 'eval_data'))
  _, held_out = data_sections.train_and_held_out(*sections)
  records = data.load(held_out, tokenizer=tokenizer)
  found, _ = samples.choose_prompts(records, num_prompts=count, num_samples=1)
  return found


def draw(
  policy: Policy,
  prompts: Sequence[Sequence[int]],
  *,
  seed: int,
  num_samples: int = 1,
  temperature: float = 1.0,
) -> samples.Rows:
  """Samples of each prompt, as `dpo_jax.evals.samples` has them."""
  return samples.generate(
    policy.params,
    policy.config,
    prompts,
    policy.tokenizer,
    key=jax.random.key(seed),
    num_samples=num_samples,
    max_new_tokens=places.NEW_TOKENS,
    batch_size=max(1, 1024 // num_samples),
    temperature=temperature,
    top_k=None,
    top_p=None,
    compute=models.Compute(),
  )


class Judges(NamedTuple):
  """What scores samples: r, its classifier's logit, another one's, VADER."""

  reward: rewards.Reward
  logit: rewards.Reward
  labels_2: rewards.Reward
  vader: rewards.Reward


def judges(place: places.Place) -> Judges:
  """Those of a block."""
  return Judges(
    rewards.build(places.reward(place)),
    rewards.build(places.classifier(place)),
    rewards.build(places.classifier(place, 2)),
    rewards.build('vader'),
  )


def scores(judge: rewards.Reward, rows: samples.Rows) -> np.ndarray:
  """The score of each row's text, f32[N]."""
  return judge(*([row[name] for row in rows] for name in ('prompt', 'text')))


def means(judged_by: Judges, rows: samples.Rows) -> dict[str, Any]:
  """Means of scores other than r, and statistics of the texts."""
  found = {
    'labels_2': scores(judged_by.labels_2, rows),
    'vader': scores(judged_by.vader, rows),
    'positive': scores(judged_by.logit, rows) > 0,
  }
  of_rows = samples.statistics(rows)
  for name in ('length', 'ended', 'repetition', 'distinct'):
    found[name] = of_rows[f'samples/{name}']
  return {name: round(float(np.mean(x)), DIGITS) for name, x in found.items()}
