"""Foreign modules as policies: a Flax Linen and an NNX transformer learn."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from dpo_jax import methods, models, registry, types
from dpo_jax.data import batches
from dpo_jax.losses import logprobs
from dpo_jax.training import optimizers
from dpo_jax.training import step as steps_lib
from tests import forests

VOCAB, WIDTH, HEADS, LONGEST = forests.VOCAB, 32, 4, 32


class LinenBlock(nn.Module):
  @nn.compact
  def __call__(self, x, mask):
    attention = nn.MultiHeadDotProductAttention(HEADS, name='attention')
    x = x + attention(nn.LayerNorm()(x), mask=mask)
    hidden = nn.gelu(nn.Dense(2 * WIDTH)(nn.LayerNorm()(x)))
    return x + nn.Dense(WIDTH)(hidden)


class LinenDecoder(nn.Module):
  @nn.compact
  def __call__(self, tokens_BxL):
    x = nn.Embed(VOCAB, WIDTH)(tokens_BxL)
    positions = nn.Embed(LONGEST, WIDTH)(jnp.arange(tokens_BxL.shape[1]))
    x = x + positions[None]
    mask = nn.make_causal_mask(tokens_BxL)
    for _ in range(2):
      x = LinenBlock()(x, mask)
    return nn.Dense(VOCAB)(nn.LayerNorm()(x))


class NnxBlock(nnx.Module):
  def __init__(self, rngs):
    self.norm_1 = nnx.LayerNorm(WIDTH, rngs=rngs)
    self.attention = nnx.MultiHeadAttention(
      HEADS, WIDTH, decode=False, rngs=rngs
    )
    self.norm_2 = nnx.LayerNorm(WIDTH, rngs=rngs)
    self.up = nnx.Linear(WIDTH, 2 * WIDTH, rngs=rngs)
    self.down = nnx.Linear(2 * WIDTH, WIDTH, rngs=rngs)

  def __call__(self, x, mask):
    x = x + self.attention(self.norm_1(x), mask=mask)
    return x + self.down(nnx.gelu(self.up(self.norm_2(x))))


class NnxDecoder(nnx.Module):
  def __init__(self, rngs):
    self.embed = nnx.Embed(VOCAB, WIDTH, rngs=rngs)
    self.positions = nnx.Embed(LONGEST, WIDTH, rngs=rngs)
    self.blocks = nnx.List([NnxBlock(rngs) for _ in range(2)])
    self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
    self.out = nnx.Linear(WIDTH, VOCAB, rngs=rngs)

  def __call__(self, tokens_BxL):
    positions = self.positions(jnp.arange(tokens_BxL.shape[1]))
    x = self.embed(tokens_BxL) + positions[None]
    mask = nnx.make_causal_mask(tokens_BxL)
    for block in self.blocks:
      x = block(x, mask)
    return self.out(self.norm(x))


def _linen():
  """(params, apply) as the adapter's docstring says."""
  module = LinenDecoder()
  tokens = jnp.zeros((1, LONGEST), jnp.int32)
  params = jax.jit(module.init)(jax.random.key(0), tokens)['params']
  return params, lambda p, t: module.apply({'params': p}, t)


def _nnx():
  graphdef, params = nnx.split(NnxDecoder(nnx.Rngs(0)))
  return params, lambda p, t: nnx.merge(graphdef, p)(t)


@pytest.fixture(
  scope='module',
  params=[
    pytest.param(_linen, id='linen'),
    pytest.param(_nnx, id='nnx', marks=pytest.mark.long),
  ],
)
def model(request):
  return request.param()


@pytest.fixture(scope='module')
def packed():
  """Steps of three pairs in two rows; few lengths, so that few compile."""
  rng = np.random.default_rng(0)

  def ids(length):
    return rng.integers(0, VOCAB, length).tolist()

  rows = [
    (ids(4), [ids(3), ids(6)], [(0, 1)]),
    (ids(4), [ids(6), ids(3), ids(6)], [(0, 1), (2, 1)]),
    (ids(4), [ids(3), ids(6)], [(1, 0)]),
    (ids(4), [ids(6), ids(6)], [(1, 0)]),
  ]
  out = batches.train_batches(
    forests.make(rows),
    15,
    rows=2,
    seed=0,
    batch_size=3,
    max_shapes=1,
    share_prompt=False,
  )
  # Rows hold several trees, and padding: both are the adapter's to undo.
  layout = out[0].layout
  assert (layout.tree_length_RxT > 0).sum(1).max() > 1
  assert (layout.segment_RxL == 0).any()
  return out


def _dpo(apply):
  section = dict(name='dpo', beta=0.3, reference='in_step')
  make = registry.build(methods.METHODS, section, 'method')()
  return make(models.from_apply(apply))


def _slots(batch):
  """(row, slot) -> its scored tokens."""
  tokens = {}
  for r, n in zip(*np.nonzero(batch.score_weight_RxN)):
    key = int(r), int(batch.score_slot_RxN[r, n])
    tokens.setdefault(key, []).append(int(batch.score_token_RxN[r, n]))
  return tokens


def _alone(apply, params, prompt, answer):
  """Log-prob of `answer` after `prompt`: one sequence, nothing else."""
  ids = jnp.asarray([*prompt, *answer])
  logps = jax.nn.log_softmax(apply(params, ids[None])[0], axis=-1)
  at = jnp.arange(len(prompt), len(ids))
  return logps[at - 1, ids[at]].sum()


def test_packed_scores_and_gradients_are_those_of_sequences(model, packed):
  params, apply = model
  batch = packed[0]
  method = _dpo(apply)
  cotangent = np.random.default_rng(1).normal(size=batch.slot_last_RxS.shape)
  cotangent = np.asarray(cotangent, np.float32)

  def weighted(params):
    logps = method.score(params, types.Frozen(), batch, None)['logps']
    scores = logprobs.slot_sums(logps, batch)
    return (scores * cotangent).sum(), scores

  gradient, scores = jax.jit(jax.grad(weighted, has_aux=True))(params)
  one = jax.jit(jax.value_and_grad(functools.partial(_alone, apply)))
  expected = jax.tree.map(jnp.zeros_like, params)
  slots = _slots(batch)
  for (row, slot), answer in slots.items():
    record = int(batch.slot_record_RxS[row, slot])
    records = packed.placement.records
    prompt = records.prompt(record).tolist()
    assert answer in [c.tolist() for c in records.completions(record)]
    value, slope = one(params, jnp.asarray(prompt), jnp.asarray(answer))
    np.testing.assert_allclose(scores[row, slot], value, rtol=1e-5)
    weight = cotangent[row, slot]
    expected = optax.tree.add_scale(expected, weight, slope)
  assert len(slots) >= 5
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
    jax.tree.leaves(gradient),
    jax.tree.leaves(expected),
  )


def test_dpo_trains_a_foreign_module(model, packed):
  params, apply = model
  method, optimizer = _dpo(apply), optax.adam(3e-3)
  frozen = method.freeze(params)
  state = steps_lib.init_state(
    method, optimizer, jax.tree.map(jnp.copy, params), jax.random.key(0)
  )
  step = steps_lib.make_train_step(method, optimizer, max_grad_norm=1.0)
  losses, accuracies = [], []
  for index in range(len(packed)):
    state, metrics = step(state, frozen, packed[index])
    losses.append(float(metrics['loss'][0] / metrics['loss'][1]))
    accuracies.append(float(metrics['rewards/accuracies'][0]))
  assert losses[0] == pytest.approx(np.log(2), abs=1e-6)
  assert losses[-1] < 0.3
  assert accuracies[0] == 0.0 and accuracies[-1] == 3.0
  changed = jax.tree.map(
    lambda new, old: bool(jnp.any(new != old)), state.params, params
  )
  assert all(jax.tree.leaves(changed))


@pytest.mark.parametrize('name', optimizers.OPTIMIZERS)
def test_every_optimizer_takes_a_foreign_tree(model, name):
  params, _ = model
  make = registry.build(optimizers.OPTIMIZERS, dict(name=name), 'optimizer')
  tx = make(1e-3)
  updates, _ = tx.update(params, tx.init(params), params)
  moved = optax.apply_updates(params, updates)
  before, after = (optax.tree.norm(tree) for tree in (params, moved))
  assert after < before
