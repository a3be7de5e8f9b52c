"""A bandit for online methods: one prompt, one token of answer, a real model.

The policy is a decoder that samples one of `ARMS` tokens, so that it can be any
distribution over them, and what a method should reach is a sum over tokens.
Names of functions say what is float64 NumPy.
"""

import jax
import numpy as np
import optax

from dpo_jax import methods, models
from dpo_jax.data import plan
from dpo_jax.evals import reward_scores
from dpo_jax.methods import collection
from dpo_jax.training import loop, sharding
from dpo_jax.training import step as steps_lib
from tests import forests

ARMS = 4
REWARD_STEPS = 300
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


def learn_reward(pairs, reference: np.ndarray) -> np.ndarray:
  """f64[ARMS] of a reward model trained on (preferred, rejected) arms."""
  record = ([1], [[arm] for arm in range(ARMS)], pairs)
  batch = plan.Limits(
    rows=1,
    records=1,
    completions=ARMS,
    examples=len(pairs),
    max_prompt_length=1,
    max_completion_length=1,
  ).pack(forests.make([record]))
  config, params = models.with_scalar_head(
    CONFIG, start(reference), jax.random.key(1), stddev=0.1
  )
  make = methods.build(dict(name='reward_model', loss='bradley_terry'))
  method = make(models.policy(config))
  optimizer = optax.adam(optax.linear_schedule(0.02, 0.0, REWARD_STEPS))
  state = steps_lib.init_state(
    method, optimizer, jax.tree.map(jax.numpy.copy, params), jax.random.key(0)
  )
  train_step = steps_lib.make_train_step(method, optimizer)
  for _ in range(REWARD_STEPS):
    state, _ = train_step(state, method.freeze(None), batch)
  scores = method.score(state.params, method.freeze(None), batch, None)
  return np.asarray(scores['rewards'], np.float64)[0]


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
