"""What a run logs before its first step: model, data, a sample of a batch."""

import jax
from absl import logging

from dpo_jax import build, settings, tokenizers, types
from dpo_jax.data import preview, store
from dpo_jax.losses import unpaired


def report(
  s: settings.TrainSettings,
  tokenizer: tokenizers.Tokenizer,
  found: build.Data,
  packed: build.Batches,
  method: types.Method,
  params: types.Params,
) -> None:
  """Logs what is trained on what, with a sample as the model sees it."""
  count = sum(x.size for x in jax.tree.leaves(params))
  devices = ', '.join(map(str, s.mesh.devices.flat))
  logging.info('%.1fM parameters on %s.', count / 1e6, devices)
  for name, records, some in (
    ('train', found.train, packed.train),
    ('held out', found.held_out, packed.held_out),
  ):
    logging.info(
      '%s: %d examples of %d records; %d batches, %.1f %% real tokens, shapes '
      '(rows x tokens): %s.',
      name,
      records.example_counts.sum(),
      len(records),
      len(some),
      100 * some.real_fraction,
      ', '.join(f'{x.rows} x {x.length}' for x in some.shapes),
    )
  if method.class_weights is not None:
    _report_classes(found.train, method.class_weights)
  shown = preview.preview(packed.train[0], found.train, tokenizer)
  logging.info('%s', shown)


def _report_classes(records: store.TokenRecords, weights) -> None:
  """How much the desirable completions weigh against the undesirable ones."""
  counts = [int((records.labels == label).sum()) for label in (1, 0)]
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
