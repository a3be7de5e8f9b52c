"""Supervised fine-tuning on sentences of movie reviews; movies_dpo.py goes on.

  python -m dpo_jax.train --config configs/movies_sft.py
  python -m dpo_jax.train --config configs/movies_dpo.py

The two stages of the DPO paper's experiments, on the quickstart's model and
data: first the model learns to write such sentences, good and bad, then DPO
with the result as its start and its reference.
`configs/movies_sft.py:tiny` is the same run cut to two steps.
"""

from ml_collections import config_dict

from dpo_jax import assets


def get_config(variant: str = ''):
  """The page; `variant` is '' or 'tiny'."""
  c = config_dict.ConfigDict()
  c.seed = 0
  # 20 x 64 of 3,171 sentences.
  c.steps = 20
  c.log_every = 2
  c.eval_every = 10
  c.max_nonfinite = 3
  c.check_start = True
  c.model = dict(
    uri=assets.SMOLLM2,
    tokenizer=config_dict.placeholder(str),
    dtype='float32',
    remat='none',
    attention='tree',
  )

  # The same sentences are held out as in movies_dpo.py.
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
  # Sizes count sentences.
  c.train_batches = dict(batch_size=64, max_shapes=1)
  # num_examples None: all that are held out.
  c.eval_batches = dict(batch_size=64, num_examples=256, max_shapes=1)

  # Nats per token; 'sequences' is what the paper's code divides by.
  c.method = dict(name='sft', normalise='tokens')
  c.optimizer = dict(name='adamw', weight_decay=0.0)
  c.schedule = dict(name='cosine', peak=1e-4, warmup_steps=5)
  c.step = dict(accumulation_steps=2, max_grad_norm=1.0)
  c.mesh = dict(data=-1, fsdp=1, tensor=1, offload_optimizer=False)
  c.distributed = dict(coordinator='auto', timeout=300, heartbeat=60)
  c.checkpoints = dict(
    every=10,
    keep=1,
    best=config_dict.placeholder(str),
    best_mode='min',
    background=False,
  )
  c.samples = dict(
    every=20,
    num_prompts=1,
    num_samples=32,
    max_new_tokens=32,
    temperature=1.0,
    top_k=config_dict.placeholder(int),
    top_p=config_dict.placeholder(float),
    scorer='vader',
  )
  c.log = dict(tensorboard=True, wandb=config_dict.placeholder(str))

  if variant == 'tiny':
    c.steps = c.eval_every = c.checkpoints.every = c.samples.every = 2
    c.log_every = 1
    c.train_batches.batch_size, c.eval_batches.batch_size = 16, 8
    c.eval_batches.num_examples = 8
    c.schedule.warmup_steps = 0
    c.samples.num_samples = 2
  elif variant:
    raise ValueError(f"Unknown variant {variant!r}; known: 'tiny'.")
  return c
