"""Random records of tokens, and log-probabilities computed the plain way."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax import models
from dpo_jax.data import batches, store
from dpo_jax.data import records as records_lib
from dpo_jax.training import step as steps_lib

VOCAB = 61
CONFIG = models.ModelConfig(
  vocab_size=VOCAB,
  num_layers=2,
  d_model=16,
  num_heads=4,
  num_kv_heads=2,
  head_dim=8,
  d_ff=24,
  max_positions=128,
  tie_embeddings=True,
)


def params(seed: int, config=CONFIG):
  """Random parameters, large enough for attention to matter."""
  tree = models.init(jax.random.key(seed), config)
  return jax.tree.map(lambda x: x * 4 if x.ndim > 1 else x, tree)


def make(rows) -> store.TokenRecords:
  """TokenRecords from (prompt, completions, examples) of token ids."""
  builder = store.Builder()
  for i, (prompt, completions, examples) in enumerate(rows):
    record = records_lib.Record(
      prompt='',
      completions=('',) * len(completions),
      examples=tuple(map(tuple, examples)),
      file='forest',
      row=i + 1,
    )
    builder.add(record, prompt, completions)
  return builder.finish()


def random_records(
  seed: int,
  *,
  num: int,
  arity: int = 2,
  max_branches: int = 4,
  max_prompt: int = 9,
  max_completion: int = 7,
  min_prompt: int = 0,
) -> store.TokenRecords:
  """Records of random sizes; every example compares `arity` completions."""
  rng = np.random.default_rng(seed)

  def ids(low, high):
    return rng.integers(0, VOCAB, rng.integers(low, high + 1)).tolist()

  rows = []
  for _ in range(num):
    branches = int(rng.integers(arity, max(arity, max_branches) + 1))
    prompt = ids(min_prompt, max_prompt)
    completions = [ids(2, max_completion) for _ in range(branches)]
    count = int(rng.integers(1, 4))
    examples = [
      rng.permutation(branches)[:arity].tolist() for _ in range(count)
    ]
    rows.append((prompt, completions, examples))
  return make(rows)


def pack(records, *, max_shapes=1, **options) -> batches.PackedBatches:
  """Batches of one placement, whose options these are."""
  placement = batches.Placement(records=records, **options)
  (packed,) = batches.plan_together([placement], max_shapes=max_shapes)
  return packed


def make_eval_step(method):
  """evaluate(params, frozen, aux, batch, key) -> metrics of the objective."""
  step = steps_lib.make_eval_step(method, steps_lib.make_score(method))

  def evaluate(*args):
    metrics, _ = step(*args)
    return {name: x for name, x in metrics.items() if name != 'examples'}

  return evaluate


@jax.jit
def _next_token_logps(tree, ids_BxL):
  """log p(ids[i + 1] | ids[:i + 1]), f32[B, L - 1], by a full softmax."""
  compute = models.Compute(attention='dense')
  hidden = models.forward(tree, CONFIG, ids_BxL, compute=compute)
  logps = jax.nn.log_softmax(models.logits(tree, CONFIG, hidden), axis=-1)
  return jnp.take_along_axis(logps[:, :-1], ids_BxL[:, 1:, None], -1)[..., 0]


class Plain:
  """All completions of some records, each as one sequence of its own.

  `index[record, completion]` is a sequence's row; `mask` is where its scored
  tokens are in what `logps` returns.
  """

  length, batch = 32, 32

  def __init__(self, records):
    pairs = [
      (i, c)
      for i in range(len(records))
      for c in range(len(records.completions(i)))
    ]
    self.index = {pair: row for row, pair in enumerate(pairs)}
    self.ids = np.zeros((self.batch, self.length), np.int32)
    self.mask = np.zeros((self.batch, self.length - 1), bool)
    for row, (i, c) in enumerate(pairs):
      prompt, completion = records.prompt(i), records.completions(i)[c]
      end = len(prompt) + len(completion)
      self.ids[row, :end] = np.concatenate([prompt, completion])
      self.mask[row, max(len(prompt), 1) - 1 : end - 1] = True

  def logps(self, tree):
    """f32[B, L - 1], zero where nothing is scored."""
    return jnp.where(self.mask, _next_token_logps(tree, self.ids), 0.0)


def assert_trees_close(actual, expected, rtol=1e-5):
  """Every leaf within `rtol` of the largest value in the expected tree."""
  leaves = jax.tree.leaves(expected)
  scale = max(float(jnp.abs(x).max()) for x in leaves)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * scale),
    actual,
    expected,
  )


def with_extras(records, extras) -> store.TokenRecords:
  """The records with these quantities of their tokens."""
  return dataclasses.replace(records, extras=extras)
