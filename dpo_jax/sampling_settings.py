"""The options of a page that samples from a model, checked."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from dpo_jax import models, registry, settings
from dpo_jax.sampling import filters
from dpo_jax.training import sharding

Options = Mapping[str, Any]


class SamplingSettings(NamedTuple):
  """The values of a page that samples; `options` are those of `sampling`."""

  seed: int
  model: settings.ModelSettings
  batch_size: int
  options: dict[str, Any]
  mesh: jax.sharding.Mesh

  @property
  def part(self) -> int:
    """How many prompts one call samples, `batch_size` of them at a time.

    They are so many that the batch is seldom without a prompt that waits.
    """
    return 8 * self.batch_size


def check(
  *,
  seed: int,
  model: Options,
  max_new_tokens: int,
  temperature: float,
  top_k: int | None,
  top_p: float | None,
  batch_size: int,
  mesh: Options | None = None,
) -> SamplingSettings:
  """Checks the values that sampling needs; ValueError for what is wrong.

  mesh: options of `sharding.make_mesh`; None for one device.
  """
  registry.check_integers(
    ('seed', seed, 0),
    ('max_new_tokens', max_new_tokens, 1),
    ('batch_size', batch_size, 1),
  )
  options = dict(temperature=temperature, top_k=top_k, top_p=top_p)
  filters.make_rule(**options)
  devices = mesh or dict(devices=1)
  return SamplingSettings(
    seed=seed,
    model=registry.bind(_sampled_model, model, 'model')(),
    batch_size=batch_size,
    options=options | {'max_new_tokens': max_new_tokens},
    mesh=registry.bind(sharding.make_mesh, devices, 'mesh')(),
  )


def _sampled_model(
  *, uri: str | None, tokenizer: str | None = None, dtype: str = 'float32'
) -> settings.ModelSettings:
  return settings.model_uris(uri, tokenizer, None, models.Compute(dtype=dtype))
