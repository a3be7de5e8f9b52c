"""PPO, RLOO and online DPO on SmolLM2-135M, towards what VADER finds positive.

  python -m dpo_jax.train --config experiments/online/page.py:ppo \\
    --workdir runs/online/ppo_0 --config.seed=0

The variant is 'ppo', 'rloo' or 'online_dpo'. The policy continues 'A sentence
from a movie review:'; the reward is VADER's compound sentiment of what it
writes, which training sees.
"""

from dpo_jax import assets, defaults

METHODS = {
  'ppo': dict(
    name='ppo',
    advantage='gae',
    kl_coefficient=0.05,
    target_kl=6.0,
    value_coefficient=0.1,
  ),
  'rloo': dict(
    name='ppo', advantage='leave_one_out', kl_coefficient=0.05, target_kl=6.0
  ),
  'online_dpo': dict(name='online_dpo', loss='dpo', beta=0.1),
}
# As many as half an hour on one core allows.
COLLECTIONS = {'ppo': 32, 'rloo': 32, 'online_dpo': 60}


def get_config(variant: str = 'ppo'):
  """The page; `variant` is a key of `METHODS`."""
  c = defaults.online()
  c.model.update(uri=assets.SMOLLM2, remat='none')
  del c.data
  c.train_data, c.eval_data = (
    dict(
      source='movie_sentences',
      split=split,
      held_out_fraction=0.2,
      max_length=128,
      max_prompt_length=64,
    )
    for split in ('train', 'test')
  )
  c.rollouts.update(
    num_prompts=16, num_samples=4, max_new_tokens=24, minibatches=2, epochs=2
  )
  if variant == 'online_dpo':
    c.rollouts.update(minibatches=1, epochs=1)
  c.method = METHODS[variant]
  if variant == 'ppo':
    c.value = dict(shared=True)
  steps = c.rollouts.minibatches * c.rollouts.epochs
  c.steps = COLLECTIONS[variant] * steps
  c.log_every = steps
  c.checkpoints.every = c.samples.every = c.steps // 4
  c.reward = dict(name='vader')
  c.optimizer = dict(name='adamw')
  c.schedule = dict(name='constant', peak=1e-5, warmup_steps=4)
  c.samples.update(
    num_prompts=1, num_samples=64, max_new_tokens=24, reward='vader'
  )
  return c
