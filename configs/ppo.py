"""PPO from your own prompts, model and reward, as InstructGPT and TRL have it.

  python -m dpo_jax.train --config configs/ppo.py \\
    --config.model.uri=runs/sft/params --config.reward.model=runs/rm/params \\
    --config.data.path=prompts.jsonl

The policy starts from a tuned model (configs/sft.py), the reward model is that
of configs/reward_model.py, and the value model starts as a copy of it
(value.uri; None: of the policy, with a head of zeros). Policy, value model,
their moments and the reference take 28 bytes a parameter of the policy, and
gradients 8 more; with a value head on the policy (value.shared=True) 16 and 4.

Values are those of TRL's PPO trainer, but for its temperature of 0.7, its
responses of 53 tokens and its single minibatch: a fixed KL coefficient, four
epochs, clips of 0.2, lambda 0.95, a learning rate of 3e-6. The differences in
what is computed are at the head of dpo_jax/methods/ppo.py.
method.advantage=leave_one_out is RLOO, group_relative with method.kl_in=loss
and method.kl_estimator=k3 GRPO; both with value=None.
`configs/ppo.py:tiny` is the same run cut to one collection, judged by VADER.
"""

from dpo_jax import defaults


def get_config(variant: str = ''):
  """The page; `variant` is '' or 'tiny'."""
  c = defaults.online()
  c.method = dict(
    name='ppo',
    advantage='gae',
    kl_coefficient=0.05,
    # In nats a completion: the coefficient adapts to it. None: it is fixed.
    target_kl=None,
    clip=0.2,
    value_clip=0.2,
    value_coefficient=0.1,
    gae_lambda=0.95,
    missing_eos_penalty=0.0,
  )
  c.value = dict(shared=False, uri=None)
  c.optimizer = dict(name='adamw')
  c.schedule = dict(name='constant', peak=3e-6, warmup_steps=0)
  return defaults.cut_online(c, variant)
