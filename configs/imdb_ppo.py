"""The DPO paper's own PPO for its sentiment study: what DPO is compared with.

  python -m dpo_jax.train --config configs/imdb_sft.py
  python -m dpo_jax.pairs --config configs/imdb_pairs.py
  python -m dpo_jax.train --config configs/reward_model.py \\
    --config.model.uri=runs/imdb_sft/params \\
    --config.data.path=runs/imdb_pairs/pairs.jsonl --workdir runs/imdb_reward
  python -m dpo_jax.train --config configs/imdb_ppo.py

App. C.1 of https://arxiv.org/abs/2305.18290: normalised rewards, 1,024 samples
a PPO step, target KLs of 3, 6, 9 and 12 nats (method.target_kl); a learned
reward, or the classifier that labels the pairs ('PPO-GT'):
--config.reward=classifier. Its code was not published. The paper leaves open
the learning rate, the clips, the epochs and the controller: TRL's of that time
here (1e-5, 0.2, 4, 0.2 at the start).
Hours: not estimated.
`configs/imdb_ppo.py:tiny` is the same run cut to one collection, judged by
VADER.
"""

from dpo_jax import defaults


def get_config(variant: str = ''):
  """The page; `variant` is '' or 'tiny'."""
  c = defaults.online()
  c.model.update(uri='runs/imdb_sft/params', dtype='bfloat16', remat='none')
  c.data = defaults.imdb_prefixes()
  c.train_data, c.eval_data = dict(split='train'), dict(split='test')
  c.rollouts.update(num_prompts=256, num_samples=4, max_new_tokens=60)
  c.method = dict(
    name='ppo',
    advantage='gae',
    kl_coefficient=0.2,
    target_kl=6.0,
    scale_rewards=True,
    clip=0.2,
    value_clip=0.2,
    value_coefficient=0.1,
    gae_lambda=0.95,
  )
  c.value = dict(shared=False, uri=None)
  c.reward = dict(name='reward_model', model='runs/imdb_reward/params')
  c.optimizer = dict(name='adamw')
  c.schedule = dict(name='constant', peak=1e-5, warmup_steps=0)
  c.samples.update(num_prompts=256, num_samples=1, max_new_tokens=60)
  c = defaults.cut_online(c, variant)
  if variant:
    c.model.dtype = 'float32'
  return c
