"""Iterative DPO of SmolLM2-135M, towards what VADER finds positive.

  python -m dpo_jax.iterative --config experiments/online/iterative_page.py \\
    --config.pairs.data.path=FOLDER --workdir runs/online/iterative_0

FOLDER is laid out like hf://datasets/stanfordnlp/imdb. In each of three rounds
the last policy completes the first 2 to 8 tokens of 128 reviews, four times
each, and is trained on the pairs of unequal reward for two epochs. The
reference is the first policy.
"""

from configs import iterative_dpo
from dpo_jax import assets, defaults


def get_config(variant: str = ''):
  """The page; there is no variant."""
  c = iterative_dpo.get_config(variant)
  c.model = assets.SMOLLM2
  c.pairs.data = defaults.imdb_prefixes(split='train')
  c.pairs.update(num_prompts=128, max_new_tokens=24, batch_size=32)
  c.pairs.reward = dict(name='vader')
  t = c.training
  t.model.remat = 'none'
  t.epochs, t.log_every, t.eval_every = 2, 1, 8
  t.checkpoints.every = t.samples.every = 8
  t.data.update(max_length=64, max_prompt_length=32)
  t.train_batches.batch_size = 64
  t.schedule.peak = 5e-6
  t.samples.update(
    num_prompts=16, num_samples=4, max_new_tokens=24, reward='vader'
  )
  return c
