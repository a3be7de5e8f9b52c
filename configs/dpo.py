"""DPO on your own pairs, from your own model.

  python -m dpo_jax.train --config configs/dpo.py \\
    --config.model.uri=hf://OWNER/NAME --config.data.path=pairs.jsonl

A line of pairs.jsonl is {"prompt": ..., "chosen": ..., "rejected": ...};
prompts are text or messages (docs/data.md). A tenth of the prompts, by a hash,
is held out; --config.eval_data.path=held_out.jsonl holds out a file instead.
Start from a model that has seen such completions: configs/sft.py.

Sizes are for memory first. A parameter takes 12 bytes (weight, gradient and
RMSprop's moment in float32), so 1B of them 12 GB, and a row of eight pairs of
512 tokens little beside. With memory to spare, step.accumulation_steps=1 and
model.remat=none are faster; too little, and a larger accumulation_steps, up to
train_batches.batch_size, or a smaller data.max_length help. On GPUs and TPUs
take model.dtype=bfloat16.
`configs/dpo.py:tiny` is the same run cut to two steps.
"""

from ml_collections import config_dict


def get_config(variant: str = ''):
  """The page; `variant` is '' or 'tiny'."""
  c = config_dict.ConfigDict()
  c.seed = 0
  # One of the two; one epoch if neither is set.
  c.steps = config_dict.placeholder(int)
  c.epochs = config_dict.placeholder(float)
  c.log_every = 10
  c.eval_every = 100
  # A step whose loss or gradient is not finite is skipped; this many in a row
  # end the run.
  c.max_nonfinite = 3
  # The first evaluation must find the policy equal to its reference, or the run
  # stops. False where it rightly starts elsewhere (model.reference).
  c.check_start = True

  # tokenizer None: the one in the model's own files. reference None: the
  # policy's start; else a model of the same architecture. remat: what the
  # backward pass computes again, 'none', 'dots' or 'full'.
  c.model = dict(
    uri=config_dict.placeholder(str),
    tokenizer=config_dict.placeholder(str),
    reference=config_dict.placeholder(str),
    dtype='float32',
    remat='full',
    attention='tree',
  )

  # What training and held-out data have in common; None is left to the source.
  # path: a file, glob or URI, or "('a.jsonl', 'b.jsonl')".
  c.data = dict(
    source='jsonl',
    path=config_dict.placeholder(object),
    # For a directory or a repository of the hub: a glob for its files.
    files=config_dict.placeholder(str),
    # Whose fields a row has: 'alpaca', 'sharegpt'; None: those of docs/data.md.
    form=config_dict.placeholder(str),
    # Names that the file has for the fields: columns.prompt=question.
    columns=dict(
      prompt=config_dict.placeholder(str),
      chosen=config_dict.placeholder(str),
      rejected=config_dict.placeholder(str),
      system=config_dict.placeholder(str),
      tools=config_dict.placeholder(str),
    ),
    kind='pairs',
    # True: text is what a user says and the assistant answers, in the model's
    # chat template.
    chat=False,
    held_out_fraction=config_dict.placeholder(float),
    # In tokens. keep_end: a prompt that is too long loses its beginning.
    max_length=512,
    max_prompt_length=256,
    truncation='keep_end',
    bos='auto',
    # In prompts: 'text' encodes them as characters, 'drop' drops the row.
    control_tokens='text',
    # Share of rows that may be unusable.
    max_drop_fraction=0.01,
  )
  # What differs. Without a split, one file is split in two, two are not.
  c.train_data = dict(
    path=config_dict.placeholder(object), split=config_dict.placeholder(str)
  )
  c.eval_data = dict(
    path=config_dict.placeholder(object), split=config_dict.placeholder(str)
  )
  # Sizes count pairs. num_examples None: all that are held out.
  c.train_batches = dict(batch_size=64, max_shapes=3)
  c.eval_batches = dict(
    batch_size=16, num_examples=config_dict.placeholder(int), max_shapes=1
  )

  # docs/beta.md says how to choose beta, docs/objectives.md what else there is.
  c.method = dict(
    name='dpo', loss='dpo', beta=0.1, label_smoothing=0.0, reference='cached'
  )
  c.optimizer = dict(name='rmsprop')
  c.schedule = dict(name='constant', peak=1e-6, warmup_steps=2)
  c.step = dict(accumulation_steps=8, max_grad_norm=10.0)
  # Devices: -1 for what is left. data: with weights of their own; fsdp: that
  # share weights, and each has rows; tensor: that share rows too. docs/mesh.md.
  c.mesh = dict(data=-1, fsdp=1, tensor=1, offload_optimizer=False)
  # 'auto', 'host:port' or None; seconds to wait, and of silence (clusters.md).
  c.distributed = dict(coordinator='auto', timeout=300, heartbeat=60)

  # best None, or a held-out metric: the checkpoint that is best by it
  # (best_mode 'min' or 'max') is kept beside the newest. 8 bytes a parameter.
  c.checkpoints = dict(
    every=100,
    keep=1,
    best=config_dict.placeholder(str),
    best_mode='min',
    background=False,
  )
  # Of the policy, at step 0, every so many steps and at the end.
  c.samples = dict(
    every=100,
    num_prompts=8,
    num_samples=2,
    max_new_tokens=128,
    temperature=1.0,
    top_k=config_dict.placeholder(int),
    top_p=config_dict.placeholder(float),
    scorer=config_dict.placeholder(str),
  )
  # wandb None, or the name of a project.
  c.log = dict(tensorboard=True, wandb=config_dict.placeholder(str))

  if variant == 'tiny':
    c.steps = c.eval_every = c.checkpoints.every = c.samples.every = 2
    c.log_every = 1
    c.train_batches.batch_size = c.eval_batches.batch_size = 8
    c.train_batches.max_shapes = c.step.accumulation_steps = 1
    c.schedule.warmup_steps = 0
    c.samples.update(num_prompts=1, max_new_tokens=4)
  elif variant:
    raise ValueError(f"Unknown variant {variant!r}; known: 'tiny'.")
  return c
