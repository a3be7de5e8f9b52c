"""This project's worker: the step that `dpo_jax.train` makes.

Batches and shapes are planned for all of the set, as a run over it would; the
steps that are timed are its first. A step's time includes packing its batch.
"""

import time

import jax
import jax.numpy as jnp

from dpo_jax import data, methods, models, tokenizers, types, weights
from dpo_jax.data import batches
from dpo_jax.training import metrics as metrics_lib
from dpo_jax.training import optimizers
from dpo_jax.training import step as steps_lib
from experiments.throughput import worker


def run(
  channel: worker.Channel,
  *,
  model: str,
  path: str,
  batch: int,
  steps: int,
  max_length: int,
  precompute: bool,
  seed: int,
  remat: str,
  attention: str,
  logprob_chunk: int,
  max_shapes: int,
  share_prompt: bool,
) -> None:
  """Trains on the first `batch * steps` pairs of `path`, in their order."""
  began = time.perf_counter()
  config, params = weights.load(model)
  compute = models.Compute(remat=remat, attention=attention)
  packed = _batches(model, path, batch, max_length, max_shapes, share_prompt)
  make_method = methods.METHODS['dpo'](
    beta=worker.BETA, reference='in_step', logprob_chunk=logprob_chunk
  )
  method = make_method(models.policy(config, compute))
  frozen = method.freeze(params)
  references = [{}] * steps
  if precompute:
    references = _references(method, frozen, packed, steps)
    method = method._replace(annotate=lambda score, frozen, aux, batch: batch)
    frozen = types.Frozen()

  def load(i):
    return jax.device_put(packed[i].replace(extras_RxN=references[i]))

  optimizer = optimizers.adamw(worker.LEARNING_RATE)
  state = steps_lib.init_state(
    method, optimizer, jax.tree.map(jnp.copy, params), jax.random.key(seed)
  )
  if precompute:
    del params
  train_step = steps_lib.make_train_step(
    method, optimizer, max_grad_norm=worker.MAX_GRAD_NORM
  )
  first_of_shape = {int(packed.shape_index[i]): i for i in range(steps)[::-1]}
  compiled = {
    shape: train_step.lower(state, frozen, load(i)).compile()
    for shape, i in first_of_shape.items()
  }
  channel.ready(
    setup_s=time.perf_counter() - began,
    digests=_digests(packed, batch * steps),
    shapes=[shape._asdict() for shape in packed.shapes],
    compiled_shapes=len(compiled),
  )
  for i in range(steps):
    channel.wait()
    placed = load(i)
    fn = compiled[int(packed.shape_index[i])]
    state, metrics = jax.block_until_ready(fn(state, frozen, placed))
    channel.stop()
    means = metrics_lib.means(jax.device_get(metrics))
    segment = placed.layout.segment_RxL
    channel.report(
      loss=means['loss'],
      logps_chosen=means['logps/chosen'],
      tokens={'real': int((segment > 0).sum()), 'computed': segment.size},
    )


def _batches(model, path, batch, max_length, max_shapes, share_prompt):
  # Both sides see every token of every row: one that is too long is an error.
  section = dict(
    source='jsonl',
    path=path,
    kind='pairs',
    max_length=max_length,
    truncation='drop',
    max_drop_fraction=0.0,
  )
  records = data.load(section, tokenizer=tokenizers.load(model))
  return batches.train_batches(
    records,
    int(records.example_counts.sum()) // batch,
    rows=1,
    seed=None,
    batch_size=batch,
    max_shapes=max_shapes,
    share_prompt=share_prompt,
  )


def _references(method, frozen, packed, steps: int) -> list[dict]:
  """The reference's log-probabilities of each batch, as NumPy arrays."""
  score, key = steps_lib.make_score(method), jax.random.key(0)
  out = []
  for i in range(steps):
    full = steps_lib.annotated(method, score, frozen, None, packed[i], key)
    out.append(jax.device_get(full.extras_RxN))
  return out


def _digests(packed, pairs: int) -> list[str]:
  out, records = [], packed.placement.records
  for record, examples in packed.placement.stream.slice(0, pairs):
    prompt = records.prompt(record)
    completions = records.completions(record)
    out += [
      worker.digest(prompt, completions[i], completions[j]) for i, j in examples
    ]
  return out


if __name__ == '__main__':
  run(worker.Channel(), **worker.options())
