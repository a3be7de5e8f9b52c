"""Pages of online methods on the model and rows of tiny.py."""

import pathlib
from typing import Any

from tests import tiny

REWARD = dict(name='function', path='tests.tiny_rewards:characters')
METHODS = {
  'ppo': (dict(name='ppo', target_kl=1.0), dict(value=dict(shared=False))),
  'shared': (
    dict(name='ppo', scale_rewards=True, clip_rewards=2.0),
    dict(value=dict(shared=True)),
  ),
  'rloo': (dict(name='ppo', advantage='leave_one_out'), {}),
  'grpo': (
    dict(
      name='ppo',
      advantage='group_relative',
      kl_in='loss',
      kl_estimator='k3',
    ),
    {},
  ),
  'online_dpo': (dict(name='online_dpo', loss='dpo', beta=0.1), {}),
  'drifting': (
    dict(
      name='online_dpo',
      loss='ipo',
      beta=0.1,
      reference='drifting',
      reference_options=dict(every=3, mix=0.5),
      labels='sampled',
    ),
    dict(reward=None, preference=dict(path='tests.tiny_rewards:longer')),
  ),
}


def page(folder: pathlib.Path, name: str = 'ppo', **changes) -> dict[str, Any]:
  """Three collections of eight prompts x two samples, four steps each."""
  c = tiny.page(folder, method='sft')
  for option in ('train_batches', 'eval_batches', 'eval_every', 'check_start'):
    del c[option]
  c |= dict(steps=12, log_every=1, reward=REWARD, samples=None)
  c['rollouts'] = dict(
    num_prompts=8, num_samples=2, max_new_tokens=6, minibatches=2, epochs=2
  )
  c['checkpoints'] = dict(every=4, keep=1)
  c['method'], more = METHODS[name]
  return c | more | changes
