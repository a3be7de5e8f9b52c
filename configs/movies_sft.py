"""Supervised fine-tuning on sentences of movie reviews; movies_dpo.py goes on.

  python -m dpo_jax.train --config configs/movies_sft.py
  python -m dpo_jax.train --config configs/movies_dpo.py

The two stages of the DPO paper's experiments, on the quickstart's model and
data: first the model learns to write such sentences, good and bad, then DPO
with the result as its start and its reference.
`configs/movies_sft.py:tiny` is the same run cut to two steps.
"""

from dpo_jax import defaults


def get_config(variant: str = ''):
  """The page; `variant` is '' or 'tiny'."""
  c = defaults.movies()
  # The same sentences are held out as in movies_dpo.py; 20 x 64 of 3,171.
  data = dict(
    source='movie_sentences',
    kind='sft',
    held_out_fraction=0.2,
    max_words=15,
    max_length=128,
    max_prompt_length=64,
  )
  c.train_data = dict(split='train', **data)
  c.eval_data = dict(split='test', **data)
  c.train_batches.batch_size = 64
  c.eval_batches.num_examples = 256
  # Nats per token; 'sequences' is what the paper's code divides by.
  c.method = dict(name='sft', normalise='tokens')
  c.optimizer = dict(name='adamw', weight_decay=0.0)
  c.schedule = dict(name='cosine', peak=1e-4, warmup_steps=5)
  c.step.max_grad_norm = 1.0
  c = defaults.cut_movies(c, variant)
  c.step.accumulation_steps = 2
  if variant:
    c.train_batches.batch_size, c.eval_batches.num_examples = 16, 8
  return c
