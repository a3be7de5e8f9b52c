"""Online DPO from your own prompts, model and reward.

  python -m dpo_jax.train --config configs/online_dpo.py \\
    --config.model.uri=runs/sft/params --config.reward.model=runs/rm/params \\
    --config.data.path=prompts.jsonl

S. Guo et al., https://arxiv.org/abs/2402.04792: in every step the policy
completes prompts twice, the reward says which completion is better, and DPO's
loss is minimised on these pairs, with a fixed reference. The paper has beta 0.1,
batches of 128 pairs and a learning rate of 5e-7 with Adafactor. Any loss of
configs/dpo.py can be used (method.loss=ipo), and a reference that follows the
policy (method.reference=drifting). Differences are at the head of
dpo_jax/methods/online_dpo.py.

With method.loss=ipo, method.labels=sampled, reward=None and
preference.path=MODULE:NAME, a function that says how often one completion is
preferred to another, it is online IPO (https://arxiv.org/abs/2403.08635), which
needs no reward behind the preference.
`configs/online_dpo.py:tiny` is the same run cut to one collection, judged by
VADER.
"""

from dpo_jax import defaults


def get_config(variant: str = ''):
  """The page; `variant` is '' or 'tiny'."""
  c = defaults.online()
  c.rollouts.update(num_prompts=128, num_samples=2, minibatches=1, epochs=1)
  c.log_every = 1
  c.checkpoints.every = c.samples.every = 50
  c.method = dict(
    name='online_dpo',
    loss='dpo',
    beta=0.1,
    label_smoothing=0.0,
    reference='cached',
    labels='likelier',
  )
  c.optimizer = dict(name='adafactor')
  c.schedule = dict(name='constant', peak=5e-7, warmup_steps=150)
  return defaults.cut_online(c, variant)
