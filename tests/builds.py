"""The parts of a run, built in the order in which train.py builds them."""

from typing import Any, NamedTuple

from dpo_jax import build, methods, models, settings, tokenizers, types
from dpo_jax.training import run_inputs


class Built(NamedTuple):
  """What train.py has before it packs batches."""

  tokenizer: tokenizers.Tokenizer
  data: build.Data
  config: models.ModelConfig
  policy: types.Policy
  method: types.Method
  params: types.Params


def load(
  s: settings.TrainSettings, known: run_inputs.Inputs | None = None
) -> Built:
  """Loads and checks; `known` are the inputs of a run that goes on."""
  known = known or run_inputs.Inputs()
  tokenizer = tokenizers.load(s.model.tokenizer_uri, model=s.model.uri)
  data = build.load_data(s, tokenizer)
  known.check_data(s.model.tokenizer_uri, tokenizer, **data.by_section())
  config, params = build.load_model(
    s.mesh, s.model.uri, head=methods.head(s.method), seed=s.seed
  )
  policy = models.policy(config, s.model.compute, s.mesh)
  method = methods.build(s.method)(policy)
  build.check(s, tokenizer, data, config, method)
  return Built(tokenizer, data, config, policy, method, params)


def prepare(
  s: settings.TrainSettings,
  built: Built,
  score: Any,
  known: run_inputs.Inputs | None = None,
) -> build.Batches:
  """The batches, with the reference's log-probabilities if cached."""
  known = known or run_inputs.Inputs()
  start, fingerprint = build.reference(s, known, built.config, built.params)
  steps = build.num_steps(s, built.data.train)
  packed = build.pack(s, built.data, built.method, steps)
  known.save()
  if built.method.reference != 'cached':
    return packed
  return build.with_reference_logps(
    s, packed, built.config, score, start, fingerprint
  )
