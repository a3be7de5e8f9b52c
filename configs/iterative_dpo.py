"""Iterative DPO: rounds of samples, labels and training from your own model.

  python -m dpo_jax.iterative --config configs/iterative_dpo.py \\
    --config.model=MODEL --config.pairs.data.path=prompts.jsonl \\
    --config.pairs.reward.model=runs/rm/params

reference 'start' is W. Xiong et al., https://arxiv.org/abs/2312.11456, who have
three rounds; with reference='last' and
--config.training.method.plus="{'preferred_ft': {'normalise': 'tokens'}}" it is
R. Y. Pang et al., https://arxiv.org/abs/2404.19733. Sizes are for your own
model: neither paper's.
`configs/iterative_dpo.py:tiny` has two rounds of two steps, judged by VADER.
"""

from ml_collections import config_dict

from dpo_jax import defaults


def get_config(variant: str = ''):
  """The page; `variant` is '' or 'tiny'."""
  c = config_dict.ConfigDict()
  c.model = config_dict.placeholder(str)
  c.rounds = 3
  c.reference = 'start'

  # A page of dpo_jax.pairs.
  c.pairs = defaults.sampling()
  del c.pairs.num_samples, c.pairs.mesh, c.pairs.model.uri
  c.pairs.data = dict(
    source='jsonl',
    path=None,
    kind='prompts',
    max_length=512,
    max_prompt_length=256,
    truncation='keep_end',
    max_drop_fraction=0.01,
  )
  # New ones in each round.
  c.pairs.num_prompts = 1_000
  c.pairs.num_completions = 4
  c.pairs.reward = dict(name='reward_model', model=None)

  # A page of dpo_jax.train. Prompts whose completions all tie give no pairs.
  c.training = defaults.training()
  del c.training.model.uri
  c.training.data.kind = 'pairs'
  c.training.data.max_drop_fraction = 0.5
  c.training.method = dict(
    name='dpo', loss='dpo', beta=0.1, label_smoothing=0.0, reference='cached'
  )
  c.training.optimizer = dict(name='rmsprop')
  c.training.schedule = dict(name='constant', peak=1e-6, warmup_steps=2)
  defaults.cut_training(c.training, variant)
  if variant:
    c.rounds = 2
    c.pairs.num_prompts, c.pairs.max_new_tokens = 8, 4
    c.pairs.reward = dict(name='vader')
  return c
