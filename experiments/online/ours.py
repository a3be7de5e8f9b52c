"""This project's worker: the collections and steps of a PPO run.

One answer is one collection: sampling, reward, scoring and all its steps.
"""

import time

import jax

from dpo_jax import methods, models, rewards, tokenizers, weights
from dpo_jax.evals import reward_scores
from dpo_jax.methods import collection, judging
from dpo_jax.training import metrics as metrics_lib
from dpo_jax.training import optimizers, sharding
from dpo_jax.training import step as steps_lib
from experiments.throughput import worker


class _Endless:
  """A tokenizer of which no token ends a text."""

  stop_ids = ()

  def __init__(self, tokenizer):
    self.bos_id, self.decode = tokenizer.bos_id, tokenizer.decode


def run(channel: worker.Channel, *, model: str, reward: str, **o) -> None:
  """Trains on `prompts`, lists of ids, `num_samples` completions of each."""
  began = time.perf_counter()
  config, params = weights.load(model)
  value_config, value = weights.load(reward)
  builder = methods.build_online(
    dict(name='ppo', advantage='gae', kl_coefficient=0.05)
  )
  online = builder.build(models.policy(config), models.policy(value_config))
  mesh = sharding.make_mesh(devices=1)
  collector = collection.Collector(
    schedule=collection.Schedule(
      num_prompts=len(o['prompts']),
      num_samples=o['num_samples'],
      max_new_tokens=o['max_new_tokens'],
      minibatches=o['minibatches'],
      epochs=o['epochs'],
    ),
    online=online,
    config=config,
    compute=models.Compute(),
    tokenizer=_Endless(tokenizers.load(model)),
    # The completions are not used.
    records=reward_scores.token_records([(p, [0]) for p in o['prompts']]),
    judge=judging.by_reward(
      rewards.build(dict(name='reward_model', model=reward, batch_size=16)),
      longest_prompt='',
      max_new_tokens=o['max_new_tokens'],
    ),
    mesh=mesh,
    rows=1,
    seed=o['seed'],
    run_samples=len(o['prompts']) * o['num_samples'] * o['steps'],
    rescore=None,
  )
  optimizer = optimizers.adamw(o['learning_rate'])
  make = jax.jit(
    lambda params, key: steps_lib.init_state(
      online.method, optimizer, jax.tree.map(jax.numpy.copy, params), key
    )
  )
  state = make({'policy': params, 'value': value}, jax.random.key(o['seed']))
  state = jax.device_put(state, sharding.replicated(mesh))
  train_step = steps_lib.make_train_step(
    online.method, optimizer, max_grad_norm=worker.MAX_GRAD_NORM
  )
  frozen = online.method.freeze(None)
  channel.ready(setup_s=time.perf_counter() - began)
  for index in range(o['steps']):
    channel.wait()
    found = collection.collect(collector, state, params, index)
    state = state.replace(aux=found.aux)
    for batch in found.batches:
      state, metrics = train_step(state, frozen, batch)
    jax.block_until_ready(state)
    channel.stop()
    means = metrics_lib.means(jax.device_get(metrics))
    channel.report(
      reward=found.metrics['reward'],
      entropy=means['policy/entropy'],
      seconds=found.seconds,
    )


if __name__ == '__main__':
  run(worker.Channel(), **worker.options())
