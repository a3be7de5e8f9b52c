"""What a run is made of: loaded, seen to fit together, the reference scored."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from absl import logging

from dpo_jax import assets, data, models, settings, tokenizers, types, weights
from dpo_jax.data import order, preview, store
from dpo_jax.losses import unpaired
from dpo_jax.methods import reference
from dpo_jax.models import parallel
from dpo_jax.training import digest, inputs, processes, sharding


class Parts(NamedTuple):
  """What a run is made of, seen to fit together."""

  tokenizer: tokenizers.Tokenizer
  records: store.TokenRecords
  held_out: store.TokenRecords
  config: models.ModelConfig
  policy: types.Policy
  method: types.Method
  inputs: inputs.Inputs


def load(
  run: settings.Run, known: inputs.Inputs | None = None
) -> tuple[settings.Run, Parts, types.Params]:
  """The run in steps; all that is read, checked; and the parameters.

  known: the inputs that a run which goes on must have; None for any.
  """
  known = known or inputs.Inputs()
  tokenizer = tokenizers.load(run.model.tokenizer_uri, model=run.model.uri)
  records = load_data('train_data', run.train_data, tokenizer)
  held_out = load_data('eval_data', run.eval_data, tokenizer)
  known.check(
    'data',
    inputs.of_data(
      run.model.tokenizer_uri, tokenizer, train_data=records, eval_data=held_out
    ),
  )
  # What is wrong with it is found before the model is read.
  run = in_steps(run, records)
  agree_on_weights(run.model)
  config, params = load_params(run, run.model.uri)
  weights.check_savable(config)
  policy = models.policy(config, run.model.compute, run.mesh)
  method = run.make_method(policy)
  parts = Parts(tokenizer, records, held_out, config, policy, method, known)
  check_tokenizer(tokenizer, config)
  if tokenizer.chat_template and records.plain:
    logging.warning(
      '%d of %d training records are text, which the chat template of the '
      'model has not rendered. Where a prompt is what a user says, '
      'data.chat=True renders it.',
      records.plain,
      len(records),
    )
  for name, part in (('train_data', records), ('eval_data', held_out)):
    check_fits(name, part, parts.method, config)
  if parts.method.class_weights is not None:
    _check_both_classes(held_out, run.eval_examples)
  if run.sample_every:
    run.sampler.check(held_out, config, tokenizer)
  if (
    parts.method.reference == 'none'
    and run.sampler is None
    and run.model.reference_uri != run.model.uri
  ):
    raise ValueError(
      f'model.reference is {run.model.reference_uri!r}, but the method has no '
      'reference, and there are no samples to compare with it.'
    )
  return run, parts, params


def agree_on_weights(model: settings.ModelOptions) -> None:
  """ValueError in every process if one has other files of the model."""
  if not processes.many():
    return
  lines = []
  for uri in dict.fromkeys((model.uri, model.reference_uri)):
    path = assets.resolve(uri)
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    lines += [f'{uri}, {assets.ends(file)}' for file in files if file.is_file()]
  processes.agree('model', '\n'.join(lines))


def load_params(
  run: settings.Run, uri: str
) -> tuple[models.ModelConfig, types.Params]:
  """`weights.load`, every device getting its part of each leaf."""
  config = weights.read_config(uri)
  shardings = parallel.shardings(run.mesh, config)
  return weights.load(uri, shardings=shardings)


def load_data(
  name: str, section: Mapping[str, Any], tokenizer: tokenizers.Tokenizer
) -> store.TokenRecords:
  """The records of a section; its ValueErrors name it."""
  try:
    return data.load(section, tokenizer=tokenizer)
  except ValueError as error:
    raise ValueError(f'{name}: {error}') from error


def check_tokenizer(
  tokenizer: tokenizers.Tokenizer, config: models.ModelConfig
) -> None:
  """ValueError for a tokenizer with tokens that the model does not have."""
  if tokenizer.vocab_size > config.vocab_size:
    raise ValueError(
      f'The tokenizer has {tokenizer.vocab_size} tokens, but the model has a '
      f'vocabulary of {config.vocab_size}: they belong to two models.'
    )


def check_fits(
  name: str,
  part: store.TokenRecords,
  method: types.Method,
  config: models.ModelConfig,
) -> None:
  """ValueError for records that the method or the model can't take."""
  data.check_fits(
    part,
    arity=method.arity,
    kinds=method.kinds,
    vocab_size=config.vocab_size,
    max_positions=config.max_positions,
  )
  _check_extras(name, part, method)


def in_steps(run: settings.Run, records: store.TokenRecords) -> settings.Run:
  """The run with its epochs of these training records as steps.

  An epoch lasts until every record was seen: with a mixture, longer than there
  are examples, see mixtures.py.
  """
  per_epoch = order.ExampleStream(records, seed=run.seed).per_epoch
  return settings.in_steps(run, per_epoch)


def _check_extras(name: str, part: store.TokenRecords, method) -> None:
  """What marks the tokens of records, and what reads the marks, go together."""
  if method.extras and not part.extras:
    raise ValueError(
      f"method.correction_weight needs {name}.segments, 'diff' or 'spans'."
    )
  if part.extras and not method.extras:
    raise ValueError(
      f'{name}.segments marks corrected tokens, but the method has no '
      'correction_weight that reads them.'
    )


def _check_both_classes(part: store.TokenRecords, num_examples) -> None:
  """ValueError if the held-out examples that are compared are all alike."""
  labels = {
    part.labels_of(i)[example[0]]
    for i, examples in order.ExampleStream(part, seed=None).slice(
      0, num_examples or int(part.example_counts.sum())
    )
    for example in examples
  }
  if len(labels) < 2:
    raise ValueError(
      f'{part.where(0)} and on: the first {num_examples} held-out examples are '
      'all desirable, or all undesirable. Raise eval_batches.num_examples, or '
      'shuffle the file.'
    )


def prepare(run: settings.Run, parts: Parts, params, score):
  """(training batches, held-out batches, reference).

  The reference's parameters; None where it is scored, and no longer needed.
  """
  method = parts.method
  start, fingerprint = params, _known(parts, 'model.uri', run.model.uri, params)
  if run.model.reference_uri != run.model.uri:
    start, fingerprint = read_reference(run, parts)
  train_batches = run.pack_train(
    parts.records, run.steps, run.train_rows, run.seed
  )
  singles = []
  if method.reference == 'cached':
    visited = dict(num_examples=run.train_examples, seed=run.seed)
    singles = [reference.singles(parts.records, **visited)]
  eval_batches, *passes = run.pack_eval(parts.held_out, run.eval_rows, singles)
  # Each process makes its own rows of them.
  train_batches, eval_batches = (
    packed.of_rows(sharding.local_rows(run.mesh, packed.placement.rows))
    for packed in (train_batches, eval_batches)
  )
  _report(run, parts, params, train_batches, eval_batches)
  parts.inputs.save()
  if method.reference == 'none':
    return train_batches, eval_batches, None
  if method.reference != 'cached':
    return train_batches, eval_batches, start

  # As the state has it: one that lies elsewhere would compile another program.
  key = jax.jit(
    lambda: jax.random.key(run.seed), out_shardings=sharding.whole(run.mesh)
  )()

  def logps(batch):
    return score(start, types.Frozen(), batch, key)['logps']

  records = reference.attach(
    parts.records,
    *passes,
    logps,
    run.mesh,
    weights=fingerprint,
    settings={
      'config': dataclasses.asdict(parts.config),
      'compute': dataclasses.asdict(run.model.compute),
    },
  )
  eval_batches = reference.score_batches(eval_batches, logps, run.mesh)
  return train_batches.of(records), eval_batches, None


def read_reference(run: settings.Run, parts: Parts):
  """(parameters, fingerprint) of the reference, `load_reference`'s.

  ValueError if it is not what the run has known.
  """
  uri = run.model.reference_uri
  params = load_reference(run, parts.config)
  name = 'model.uri' if uri == run.model.uri else 'model.reference'
  return params, _known(parts, name, uri, params)


def _known(parts: Parts, name: str, uri: str, params: types.Params) -> str:
  """The fingerprint of parameters; ValueError if the run has known others."""
  sha256 = digest.fingerprint(params)
  parts.inputs.check('parameters', {name: inputs.Input(uri, sha256)})
  return sha256


def load_reference(run: settings.Run, config: models.ModelConfig):
  """The parameters that model.reference names, by default the policy's start.

  ValueError if they are of another architecture than the policy.
  """
  other, params = load_params(run, run.model.reference_uri)
  mine, its = dataclasses.asdict(config), dataclasses.asdict(other)
  differing = [
    f"{name} is {its[name]!r}, the policy's {mine[name]!r}"
    for name in mine
    if its[name] != mine[name]
  ]
  if differing:
    raise ValueError(
      f'The reference {run.model.reference_uri!r} is of another architecture: '
      f'{"; ".join(differing)}. Give one like the policy as model.reference '
      '(--reference in evaluate).'
    )
  return params


def _report(run, parts, params, train_batches, eval_batches) -> None:
  """What will be trained on what, with a sample as the model sees it."""
  count = sum(x.size for x in jax.tree.leaves(params))
  devices = ', '.join(map(str, run.mesh.devices.flat))
  logging.info('%.1fM parameters on %s.', count / 1e6, devices)
  for name, part, packed in (
    ('train', parts.records, train_batches),
    ('held out', parts.held_out, eval_batches),
  ):
    logging.info(
      '%s: %d examples of %d records; %d batches, %.1f %% real tokens, shapes '
      '(rows x tokens): %s.',
      name,
      part.example_counts.sum(),
      len(part),
      len(packed),
      100 * packed.real_fraction,
      ', '.join(f'{s.rows} x {s.length}' for s in packed.shapes),
    )
  if parts.method.class_weights is not None:
    _report_classes(parts)
  shown = preview.preview(train_batches[0], parts.records, parts.tokenizer)
  logging.info('%s', shown)


def _report_classes(parts: Parts) -> None:
  """How much the desirable completions weigh against the undesirable ones."""
  counts = [int((parts.records.labels == label).sum()) for label in (1, 0)]
  weights = parts.method.class_weights
  low, high = unpaired.CLASS_WEIGHT_RANGE
  ratio = unpaired.class_weight_ratio(
    desirable_weight=weights[0],
    undesirable_weight=weights[1],
    num_desirable=counts[0],
    num_undesirable=counts[1],
  )
  text = (
    '%d desirable and %d undesirable completions, weighing %.3g to 1; KTO '
    'recommends %.3g to %.3g.'
  )
  within = low <= ratio <= high
  say = logging.info if within else logging.warning
  say(text, *counts, ratio, low, high)
