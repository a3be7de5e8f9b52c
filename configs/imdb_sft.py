"""SFT on IMDb reviews: GPT-2 large learns to write reviews, good and bad.

  python -m dpo_jax.train --config configs/imdb_sft.py
  python -m dpo_jax.pairs --config configs/imdb_pairs.py
  python -m dpo_jax.train --config configs/imdb_dpo.py

The start and reference of section 6's controlled sentiment experiment, App. C.1
(https://arxiv.org/abs/2305.18290; values and hours: dpo_jax/defaults.py).
One epoch of 25,000 reviews, about 7M tokens: 4e16 FLOPs, estimated at 6 minutes
on an A100; state takes 9 GB, so any GPU with 24 GB does.

The paper: one epoch on a subset of IMDb (App. C.1), "until convergence"
(section 6); it gives no other values for SFT, and its code for this was not
published. The learning rate here is ours.
`configs/imdb_sft.py:tiny` is the same run cut to two steps.
"""

from dpo_jax import defaults


def get_config(variant: str = ''):
  """The page; `variant` is '' or 'tiny'."""
  c = defaults.paper()
  c.model.uri = 'hf://openai-community/gpt2-large'
  # data_dir None: where TFDS keeps its data. path: a download of
  # stanfordnlp/imdb from the hub instead.
  c.data.update(
    source='imdb_reviews',
    data_dir=None,
    path=None,
    truncation='keep_start',
    max_drop_fraction=0.01,
  )
  c.eval_every = c.checkpoints.every = c.samples.every = 100
  c.samples.max_new_tokens = 60
  c.method = dict(name='sft', normalise='tokens')
  c.schedule.update(peak=1e-5, warmup_steps=20)
  return defaults.cut_paper(c, variant)
