"""A reward model from your own pairs and your own language model.

  python -m dpo_jax.train --config configs/reward_model.py \\
    --config.model.uri=hf://OWNER/NAME --config.data.path=pairs.jsonl

Eq. 2 of arXiv:2305.18290: the model gets a scalar head in the place of its
unembedding, and rewards of chosen answers are to be larger. Pairs are written
as for configs/dpo.py. What is trained is saved as a sequence classifier of
`transformers`, with one label; such a checkpoint can be the start too.
method.loss=plackett_luce takes rankings, regression ratings, binary labels.

InstructGPT (arXiv:2203.02155) trains for one epoch, as more overfit, at a rate
of 9e-6 that falls by a cosine. After the last step the start is sampled, and
the mean reward of its samples is stored, to be subtracted (normalise=None: it
is not).
`configs/reward_model.py:tiny` is the same run cut to two steps.
"""

from dpo_jax import defaults


def get_config(variant: str = ''):
  """The page; `variant` is '' or 'tiny'."""
  c = defaults.training()
  c.samples = None
  # None: the policy's start; else the language model that is sampled.
  c.model.reference = None
  c.data.kind = 'pairs'
  c.method = dict(
    name='reward_model',
    loss='bradley_terry',
    centre_coefficient=0.0,
    normalise='examples',
  )
  c.normalise = dict(num_prompts=64, num_samples=4, max_new_tokens=128)
  c.optimizer = dict(name='adamw')
  c.schedule = dict(name='cosine', peak=9e-6, warmup_steps=10)
  return defaults.cut_reward_model(c, variant)
