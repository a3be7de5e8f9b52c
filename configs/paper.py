"""What the DPO paper's three experiments have in common.

App. B of https://arxiv.org/abs/2305.18290: batches of 64, RMSprop, a learning
rate of 1e-6 after a linear warmup of 150 steps. The authors' code
(github.com/eric-mitchell/direct-preference-optimization) has a default of 5e-7,
which its README's commands use; it clips gradients to a norm of 10, cuts to 512
tokens, and evaluates 256 held-out examples every 19,968 training examples, all
of which the paper leaves open and these pages take from it.

What we do otherwise: a prompt is computed once for all of its completions;
log-probabilities are float32; the reference is scored once, before training;
samples for the KL are drawn without a filter, where the code's are cut to the
50 likeliest tokens. What happens to texts is at the head of dpo_jax/data/
token_rules.py and of the source's module.

Hours are estimates: FLOPs / (0.4 x peak), with the FLOPs of a token 8 x
parameters in training (6, and 2 for what remat computes again), and 2 more
where a reference is scored; tokens count a prompt once for all of its
completions, their numbers are assumed. 0.4 is what such steps often reach;
none was measured.
"""

from ml_collections import config_dict


def get_config():
  """The values that the pages share; they need a model, data and a method."""
  c = config_dict.ConfigDict()
  c.seed = 0
  # One of the two; one epoch if neither is set.
  c.steps = config_dict.placeholder(int)
  c.epochs = config_dict.placeholder(float)
  c.log_every = 10
  c.eval_every = 312
  c.max_nonfinite = 3
  c.check_start = True
  c.model = dict(
    uri=config_dict.placeholder(str),
    tokenizer=config_dict.placeholder(str),
    dtype='bfloat16',
    remat='full',
    attention='tree',
  )
  # bos: the code adds none.
  c.data = dict(max_length=512, max_prompt_length=256, bos='never')
  c.train_data = dict(split='train')
  c.eval_data = dict(split='test')
  c.train_batches = dict(batch_size=64, max_shapes=3)
  c.eval_batches = dict(batch_size=32, num_examples=256, max_shapes=1)
  c.optimizer = dict(name='rmsprop')
  c.schedule = dict(name='constant', peak=1e-6, warmup_steps=150)
  c.step = dict(accumulation_steps=8, max_grad_norm=10.0)
  c.mesh = dict(data=1, fsdp=-1, tensor=1, offload_optimizer=False)
  c.distributed = dict(coordinator='auto', timeout=300, heartbeat=60)
  # 8 bytes a parameter.
  c.checkpoints = dict(
    every=624,
    keep=1,
    best=config_dict.placeholder(str),
    best_mode='min',
    background=False,
  )
  c.samples = dict(
    every=312,
    num_prompts=16,
    num_samples=1,
    max_new_tokens=128,
    temperature=1.0,
    top_k=config_dict.placeholder(int),
    top_p=config_dict.placeholder(float),
    scorer=config_dict.placeholder(str),
  )
  c.log = dict(tensorboard=True, wandb=config_dict.placeholder(str))
  return c


def cut(c, variant: str):
  """The page, if `variant` is 'tiny' cut to two steps that a laptop can do."""
  if variant == 'tiny':
    c.steps = c.eval_every = c.checkpoints.every = c.samples.every = 2
    c.log_every = 1
    c.train_batches.batch_size = c.eval_batches.batch_size = 8
    c.train_batches.max_shapes, c.eval_batches.num_examples = 1, 8
    c.step.accumulation_steps = 1
    c.schedule.warmup_steps = 0
    c.samples.update(num_prompts=2, max_new_tokens=4)
    c.model.update(dtype='float32', remat='none')
  elif variant:
    raise ValueError(f"Unknown variant {variant!r}; known: 'tiny'.")
  return c
