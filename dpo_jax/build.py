"""Builds data, model and batches of a run, and checks that they match."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from absl import logging

from dpo_jax import data, models, settings, tokenizers, types, weights
from dpo_jax.data import batches, order, store
from dpo_jax.methods import reference as reference_lib
from dpo_jax.models import parallel
from dpo_jax.training import run_inputs, sharding

# How far the first evaluation may be from what a policy that is its own
# reference has: sums of float32 round. Relative to that above 1.
START_TOLERANCE = 1e-3


class Data(NamedTuple):
  """Token records of the sections train_data and eval_data."""

  train: store.TokenRecords
  held_out: store.TokenRecords

  def by_section(self) -> dict[str, store.TokenRecords]:
    """The records by the name of their section."""
    return {'train_data': self.train, 'eval_data': self.held_out}


class Batches(NamedTuple):
  """Packed batches of a run.

  to_score: the completions of the training records, each by itself, for the
  pass that scores them under the reference; None where there is none.
  """

  train: batches.PackedBatches
  held_out: batches.PackedBatches
  to_score: batches.PackedBatches | None


def load_data(
  s: settings.TrainSettings, tokenizer: tokenizers.Tokenizer
) -> Data:
  """The records of a run."""
  return Data(
    load_section('train_data', s.train_data, tokenizer),
    load_section('eval_data', s.eval_data, tokenizer),
  )


def load_section(
  name: str, section: Mapping[str, Any], tokenizer: tokenizers.Tokenizer
) -> store.TokenRecords:
  """The records of a section; its ValueErrors name it."""
  try:
    return data.load(section, tokenizer=tokenizer)
  except ValueError as error:
    raise ValueError(f'{name}: {error}') from error


def num_steps(s: settings.TrainSettings, records: store.TokenRecords) -> int:
  """The steps of a run on these training records.

  An epoch ends when every record was seen: in a mixture that takes more
  examples than there are, see mixtures.py.
  """
  per_epoch = order.ExampleStream(records, seed=s.seed).per_epoch
  return settings.num_steps(s, per_epoch)


def load_model(
  mesh: jax.sharding.Mesh,
  uri: str,
  *,
  head: str | None = 'logits',
  seed: int = 0,
) -> tuple[models.ModelConfig, types.Params]:
  """`weights.load`, each device reading its part of each leaf.

  head: what the model must have; None: either. Where it is 'scalar', a language
  model gets one of a normal distribution with variance 1 / (D + 1)
  (arXiv:2009.01325) from this seed. ValueError as of `check_head`.
  """
  config = weights.read_config(uri)
  check_head(config, uri, head)
  params = weights.load(uri, shardings=parallel.shardings(mesh, config))[1]
  if head in (None, config.head):
    return config, params
  stddev = (config.d_model + 1) ** -0.5
  return models.with_scalar_head(
    config,
    params,
    jax.random.key(seed),
    stddev=stddev,
    place=functools.partial(sharding.replicate, mesh),
  )


def check_head(
  config: models.ModelConfig, uri: str | None, head: str | None
) -> None:
  """ValueError for a scalar model in the place of a language model."""
  if config.head == 'scalar' and head == 'logits':
    raise ValueError(
      f'{uri!r} is a reward model, with a scalar head; expected a language '
      'model.'
    )


def load_reference(
  s: settings.TrainSettings, config: models.ModelConfig
) -> types.Params:
  """The parameters that model.reference names, by default the policy's start.

  ValueError if they are of another architecture than the policy.
  """
  other, params = load_model(s.mesh, s.model.reference_uri)
  mine, its = dataclasses.asdict(config), dataclasses.asdict(other)
  differing = [
    f"{name} is {its[name]!r}, the policy's {mine[name]!r}"
    for name in mine
    if its[name] != mine[name]
  ]
  if differing:
    raise ValueError(
      f'The reference {s.model.reference_uri!r} is of another architecture: '
      f'{"; ".join(differing)}. Give one like the policy as model.reference '
      '(--reference in evaluate).'
    )
  return params


def reference(
  s: settings.TrainSettings,
  known: run_inputs.Inputs,
  config: models.ModelConfig,
  params: types.Params,
) -> tuple[types.Params, str]:
  """(parameters, fingerprint) of the reference, where `params` are the start.

  A reward model has none but its start. ValueError if the start or the
  reference is another than the run began with.
  """
  fingerprint = known.check_params('model.uri', s.model.uri, params)
  if s.model.reference_uri == s.model.uri or config.head == 'scalar':
    return params, fingerprint
  return read_reference(s, known, config)


def read_reference(
  s: settings.TrainSettings,
  known: run_inputs.Inputs,
  config: models.ModelConfig,
) -> tuple[types.Params, str]:
  """(parameters, fingerprint) of the reference, read from its files.

  ValueError if it is another than the run began with.
  """
  params = load_reference(s, config)
  is_start = s.model.reference_uri == s.model.uri
  name = 'model.uri' if is_start else 'model.reference'
  return params, known.check_params(name, s.model.reference_uri, params)


def check(
  s: settings.TrainSettings,
  tokenizer: tokenizers.Tokenizer,
  found: Data,
  config: models.ModelConfig,
  method: types.Method,
) -> None:
  """ValueError for tokenizer, data, model and method that do not match."""
  check_model(tokenizer, found, config)
  check_records('train_data', found.train, method, config)
  check_records('eval_data', found.held_out, method, config)
  if method.class_weights is not None:
    _check_both_classes(found.held_out, s.eval_batches.get('num_examples'))
  if s.samples is not None:
    s.samples.sampler.check(found.held_out, config, tokenizer)
  if s.normalise is not None:
    sampled = weights.read_config(s.model.reference_uri)
    check_head(sampled, s.model.reference_uri, 'logits')
    check_tokenizer(tokenizer, sampled)
    for each in (sampled, config):
      s.normalise.check(found.held_out, each, tokenizer)
  beside = (s.samples, s.normalise) != (None, None)
  check_reference_is_read(s, beside or method.reference != 'none')


def check_reference_is_read(s, is_read: bool) -> None:
  """ValueError for a model.reference that nothing reads."""
  if not is_read and s.model.reference_uri != s.model.uri:
    raise ValueError(
      f'model.reference is {s.model.reference_uri!r}, but the method has no '
      'reference, and there are no samples to compare with it.'
    )


def check_model(
  tokenizer: tokenizers.Tokenizer, found: Data, config: models.ModelConfig
) -> None:
  """ValueError for a model that can't be saved, or a tokenizer of another.

  Warns of texts without the chat template of the model.
  """
  weights.check_savable(config)
  check_tokenizer(tokenizer, config)
  if tokenizer.chat_template and found.train.plain:
    logging.warning(
      '%d of %d training records are text, which the chat template of the '
      'model has not rendered. Where a prompt is what a user says, '
      'data.chat=True renders it.',
      found.train.plain,
      len(found.train),
    )


def check_tokenizer(
  tokenizer: tokenizers.Tokenizer, config: models.ModelConfig
) -> None:
  """ValueError for a tokenizer with tokens that the model does not have."""
  if tokenizer.vocab_size > config.vocab_size:
    raise ValueError(
      f'The tokenizer has {tokenizer.vocab_size} tokens, but the model has a '
      f'vocabulary of {config.vocab_size}: they belong to two models.'
    )


def check_records(
  name: str,
  records: store.TokenRecords,
  method: types.Method,
  config: models.ModelConfig,
) -> None:
  """ValueError for records that the method or the model can't take."""
  data.check_fits(
    records,
    arity=method.arity,
    kinds=method.kinds,
    vocab_size=config.vocab_size,
    max_positions=config.max_positions,
  )
  if method.extras and not records.extras:
    raise ValueError(
      f"method.correction_weight needs {name}.corrections, 'diff' or 'spans'."
    )
  if records.extras and not method.extras:
    raise ValueError(
      f'{name}.corrections marks corrected tokens, but the method has no '
      'correction_weight that reads them.'
    )


def _check_both_classes(records: store.TokenRecords, num_examples) -> None:
  """ValueError if the held-out examples that are compared are all alike."""
  labels = {
    records.labels_of(i)[example[0]]
    for i, examples in order.ExampleStream(records, seed=None).slice(
      0, num_examples or int(records.example_counts.sum())
    )
    for example in examples
  }
  if len(labels) < 2:
    raise ValueError(
      f'{records.where(0)} and on: the first {num_examples} held-out examples '
      'are all desirable, or all undesirable. Raise eval_batches.num_examples, '
      'or shuffle the file.'
    )


def check_start(
  s: settings.TrainSettings, method: types.Method, row: Mapping[str, float]
) -> None:
  """ValueError if the first evaluation is not of the reference itself.

  row: its metrics.
  """
  for name, expected in method.at_start.items() if s.check_start else ():
    given, expected = row[f'eval/{name}'], float(expected)
    if not abs(given - expected) <= START_TOLERANCE * max(1, abs(expected)):
      raise ValueError(
        f'At step 0 eval/{name} is {given:.5f}; where the reference is the '
        f"policy's start it is {expected:.5f}, to {START_TOLERANCE}. The "
        'reference is not that start. If it is not meant to be '
        '(model.reference), set check_start=False.'
      )


# Batches and the reference's log-probabilities.


def pack(
  s: settings.TrainSettings, found: Data, method: types.Method, steps: int
) -> Batches:
  """All batches of a run; those that are only scored share their shapes."""
  train = batches.train_batches(
    found.train, steps, s.train_rows, s.seed, **s.train_batches
  )
  singles = []
  if method.reference == 'cached':
    visited = steps * s.train_batches['batch_size']
    singles = [
      reference_lib.singles(found.train, num_examples=visited, seed=s.seed)
    ]
  held_out, *to_score = batches.eval_batches(
    found.held_out, s.eval_rows, singles, **s.eval_batches
  )
  return Batches(train, held_out, *(to_score or [None]))


def with_reference_logps(
  s: settings.TrainSettings,
  packed: Batches,
  config: models.ModelConfig,
  score: Callable[..., Any],
  start: types.Params,
  fingerprint: str,
) -> Batches:
  """The batches with log-probabilities of the reference, for 'cached' methods.

  start, fingerprint: the reference. score: that of `step.make_score`.
  """
  # As the state has it: one that lies elsewhere would compile another program.
  key = jax.jit(
    lambda: jax.random.key(s.seed), out_shardings=sharding.replicated(s.mesh)
  )()

  def logps(batch):
    return score(start, types.Frozen(), batch, key)['logps']

  records = reference_lib.attach(
    packed.train.placement.records,
    packed.to_score,
    logps,
    s.mesh,
    weights=fingerprint,
    settings={
      'config': dataclasses.asdict(config),
      'compute': dataclasses.asdict(s.model.compute),
    },
  )
  held_out = reference_lib.score_batches(packed.held_out, logps, s.mesh)
  return Batches(packed.train.of(records), held_out, None)
