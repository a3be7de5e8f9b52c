"""A bandit for online methods: one prompt, one token of answer, a real model.

The policy is a decoder that samples one of `ARMS` tokens, so that it can be any
distribution over them, and what a method should reach is a sum over tokens.
Names of functions say what is float64 NumPy.
"""

import jax
import numpy as np
import optax

from dpo_jax import methods, models
from dpo_jax.evals import reward_scores
from dpo_jax.methods import collection
from dpo_jax.training import loop, sharding
from dpo_jax.training import step as steps_lib

ARMS = 4
CONFIG = models.ModelConfig(
  vocab_size=ARMS,
  num_layers=1,
  d_model=16,
  num_heads=2,
  num_kv_heads=2,
  head_dim=8,
  d_ff=16,
  max_positions=8,
  tie_embeddings=False,
)


class Letters:
  """A tokenizer whose tokens are letters; none of them ends a text."""

  stop_ids = ()
  bos_id = None

  def decode(self, ids, start=True):
    del start
    return ''.join(chr(ord('a') + i) for i in ids)


def arms_of(texts) -> np.ndarray:
  """The tokens of texts of one letter."""
  return np.array([ord(text) - ord('a') for text in texts])


def start(reference: np.ndarray):
  """Parameters of a policy with these log-probabilities, f64[ARMS]."""
  params = models.init(jax.random.key(0), CONFIG)
  hidden = np.asarray(models.forward(params, CONFIG, np.ones((1, 1), np.int32)))
  h = hidden[0, 0].astype(np.float64)
  kernel = np.outer(reference, h) / (h @ h)
  params['unembed']['kernel'] = np.asarray(kernel, np.float32)
  return jax.tree.map(jax.numpy.asarray, params)


def log_policy(params) -> np.ndarray:
  """f64[ARMS] of the answer."""
  hidden = models.forward(params, CONFIG, np.ones((1, 1), np.int32))
  z = np.asarray(models.logits(params, CONFIG, hidden))[0, 0].astype(np.float64)
  return z - np.log(np.exp(z - z.max()).sum()) - z.max()


def train(
  section,
  judge,
  reference: np.ndarray,
  *,
  collections: int,
  num_samples: int = 8,
  epochs: int = 1,
  peak: float = 0.03,
  value=False,
) -> np.ndarray:
  """log-probabilities of the policy, f64[ARMS], after so many collections.

  The learning rate falls linearly to 0, so that the noise of samples does.
  value: whether a head on the policy's hidden states is trained.
  """
  mesh = sharding.make_mesh(devices=1)
  policy = models.policy(CONFIG)
  builder = methods.build_online(section)
  online = builder.build(policy, None)
  params = start(reference)
  trained = {'policy': params} if section['name'] == 'ppo' else params
  if value:
    trained['value'] = {'score': {'kernel': np.zeros((16, 1), np.float32)}}
  schedule = collection.Schedule(
    num_prompts=32, num_samples=num_samples, max_new_tokens=1, epochs=epochs
  )
  steps = collections * schedule.steps
  optimizer = optax.adam(optax.linear_schedule(peak, 0.0, steps))
  state = steps_lib.init_state(
    online.method,
    optimizer,
    jax.tree.map(jax.numpy.copy, trained),
    jax.random.key(0),
    reference=params,
  )
  collector = collection.Collector(
    schedule=schedule,
    online=online,
    config=CONFIG,
    compute=models.Compute(),
    tokenizer=Letters(),
    records=reward_scores.token_records([([1], [2])]),
    judge=judge,
    mesh=mesh,
    rows=1,
    seed=0,
    run_samples=collections * schedule.samples,
    rescore=None,
  )
  train_step = steps_lib.make_train_step(online.method, optimizer)
  frozen = online.method.freeze(params)
  progress = loop.Progress()
  for index in range(collections):
    found = collection.collect(collector, state, params, index)
    state, progress = loop.fit(
      train_step,
      state.replace(aux=found.aux),
      frozen,
      found.batches,
      progress,
      num_steps=steps,
      until=(index + 1) * schedule.steps,
      log_every=steps,
      max_nonfinite=1,
      context=loop.RowContext(lambda step: 0.0, 1.0, found.where),
      write=lambda step, row: None,
    )
  return log_policy(online.policy_of(state.params))
